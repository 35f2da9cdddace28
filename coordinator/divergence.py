"""What the coordinator believes about each cohort's disagreement, from what the rounds have shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from math import log, sqrt
from typing import Any

from coordinator.aggregation import Divergence


class Signal(str, Enum):
    """What makes a block worth a budget.

    WEIGHTED    D' times the block's relative update norm: a converged block's noise is divergent but small
    DIVERGENCE  D' alone;   NORM  the relative update norm alone;   EQUAL  all the same
    """

    WEIGHTED = "weighted"
    DIVERGENCE = "divergence"
    NORM = "norm"
    EQUAL = "equal"


@dataclass
class _Belief:
    estimate: float | None = None
    divergence: float | None = None
    count: float = 0.0  # discounted number of observations
    unseen: int = 0  # rounds since the block was last trained


class Beliefs:
    """An exponential mean (beta of the newest) per block with a UCB bonus; held while a block is not observed.

    U_m = estimate + kappa sqrt(ln t / n_m), n_m discounted by gamma a round, since divergence moves (discounted UCB).
    """

    def __init__(
        self,
        blocks: Iterable[str],
        *,
        signal: Signal = Signal.WEIGHTED,
        beta: float = 0.3,
        kappa: float = 0.1,
        gamma: float = 0.95,
    ) -> None:
        self._signal, self._beta, self._kappa, self._gamma = signal, beta, kappa, gamma
        self._of = {block: _Belief() for block in blocks}
        self._rounds = 0

    def observe(self, seen: Mapping[str, tuple[Divergence, float]]) -> None:
        """One round: block -> (divergence, |block|, the norm of its weights). Blocks left out were not trained."""
        self._rounds += 1
        for block, belief in self._of.items():
            belief.count *= self._gamma
            if block not in seen:
                belief.unseen += 1
                continue
            divergence, weight = seen[block]
            belief.count, belief.unseen = belief.count + 1.0, 0
            value = self._value(divergence, weight)
            if value is not None:
                belief.estimate = self._mix(belief.estimate, value)
            if divergence.value is not None:
                belief.divergence = self._mix(belief.divergence, divergence.value)

    def _mix(self, old: float | None, new: float) -> float:
        return new if old is None else (1 - self._beta) * old + self._beta * new

    def _value(self, d: Divergence, weight: float) -> float | None:
        relative = sqrt(d.energy) / max(weight, 1e-12)
        if self._signal is Signal.EQUAL:
            return 1.0
        if self._signal is Signal.NORM:
            return relative
        if d.value is None:  # one trainer: undefined, kept as it was
            return None
        return d.value if self._signal is Signal.DIVERGENCE else d.value * relative

    def utility(self) -> dict[str, float]:
        """U_m of every block, scaled so that the largest estimate is 1; blocks never seen count as the largest."""
        known = [b.estimate for b in self._of.values() if b.estimate is not None]
        top = max(known, default=1.0) or 1.0
        t = max(self._rounds, 1)
        return {
            block: (1.0 if b.estimate is None else b.estimate / top)
            + self._kappa * sqrt(log(t + 1) / max(b.count, 0.1))
            for block, b in self._of.items()
        }

    def divergence(self) -> dict[str, float]:
        """Smoothed D' of the blocks that had at least two trainers."""
        return {block: b.divergence for block, b in self._of.items() if b.divergence is not None}

    def due(self, tau: int) -> list[str]:
        """Blocks that must be trained this round so that none stays untouched for more than `tau` rounds."""
        return [block for block, b in self._of.items() if b.unseen + 1 >= tau]

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` continues."""
        return {"rounds": self._rounds, "of": {block: asdict(b) for block, b in self._of.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rounds = int(state["rounds"])
        self._of = {block: _Belief(**values) for block, values in state["of"].items()}


def worth(blocks: Iterable[str], seen: Mapping[str, tuple[Divergence, float]]) -> dict[str, float]:
    """U_m by what a single round shows: no mean over rounds and no bonus, the largest scaled to 1."""
    blocks = tuple(blocks)
    now = Beliefs(blocks, beta=1.0, kappa=0.0)
    now.observe({block: values for block, values in seen.items() if block in blocks})
    return now.utility()
