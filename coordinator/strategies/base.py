"""What a method decides, and nothing else: who trains what, how it is folded, what is learned from a round.

RELIEF, its ablations and every rival are one small file each over this, so a comparison differs in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator

from coordinator.aggregation import Contribution, Divergence, Folded, Weighting, fold
from coordinator.events import UpdateHead
from coordinator.pacing import LearnedDeadline
from coordinator.robust import Robust
from coordinator.serving import Serving
from coordinator.work import Budget, Member, Work, work
from models.local import Local
from models.partition import Vector
from models.spec import SHARED, BPolicy, Mode, ModelSpec

REACH = 0.1  # of its local steps that half of every cohort has time for under the deadline "cohorts"
FILLED = 0.25  # of the fleet's median windows: who holds fewer has no say in how long a round lasts


def _known(wanted: str | float) -> str | float:
    if wanted in ("none", "cohorts", "fastest", "learned"):
        return wanted
    try:
        number = float(wanted)
    except ValueError:
        number = 0.0
    if not number > 0.0:
        raise ValueError('"none", "cohorts", "fastest", "learned", a quantile between 0 and 1, or seconds from 1 on')
    return number


Deadline = Annotated[str | float, AfterValidator(_known)]  # what it means is said at Settings


@dataclass(frozen=True)
class Settings:
    """What all methods have in common in a comparison.

    epochs     local epochs of a full round
    deadline   "none", "cohorts" (the fastest device's full round, or what half of every cohort needs for REACH of its
               steps on the cohort's block, where that is longer), "fastest" (the first of the two in any case),
               "learned" (coordinator.pacing), a quantile below 1 of the devices' full rounds, or seconds from 1 on
    joules     allowance per device and round; 0: none
    bytes      uplink allowance per device and round; 0: none
    robust     how a cohort's updates become one where some devices may be hostile; None: the method's own mean
    """

    epochs: float = 2.0
    deadline: Deadline = "none"
    joules: float = 0.0
    bytes: float = 0.0
    local: Local = field(default_factory=Local)
    robust: Robust | None = None


@dataclass(frozen=True)
class Plan:
    """One device's part in a round: local steps per block, under which budget, by which local rule."""

    steps: dict[str, int]
    budget: Budget
    local: Local
    seconds: float
    joules: float = 0.0


class Strategy:
    """A method. Subclasses set the class attributes and override `plan`, and what else they do differently."""

    name: ClassVar[str]
    source: ClassVar[str]  # whose method it is
    absent: ClassVar[str]  # what it does with a modality that a device does not own
    weighting: ClassVar[Weighting] = Weighting.NOVA
    dropout: ClassVar[float] = 0.0  # of modalities in local steps, where a fleet's configuration does not say
    simulator_only: ClassVar[bool] = False  # it asks of devices or their models what the protocol does not carry

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        if settings.robust and spec.mode is Mode.LORA and spec.b_policy is BPolicy.CORRECTED:
            raise ValueError("b_policy corrected is made of plain means, which a liar moves: not together with robust")
        self.spec, self.settings = spec, settings
        self.pacing = LearnedDeadline() if settings.deadline == "learned" else None

    # -- the verbs -------------------------------------------------------------------------------

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        """Who trains what in this round. Devices that are left out, or given no steps, sit it out."""
        raise TypeError(f"{type(self).__name__} does not say how it plans a round")

    def weigh(self, heads: Sequence[UpdateHead]) -> None:
        """Told whose updates are about to be folded, in device order, for methods that weigh them by what they say."""

    def fold(self, block: str, size: int, contributions: Iterable[Contribution], total_samples: int) -> Folded | None:
        """One block's change from what its trainers sent, in device order; None leaves the block alone."""
        return fold(size, contributions, self.weighting, total_samples)

    def apply(self, block: str, base: Vector, folded: Folded) -> Vector:
        """The block's next version, in the dtype of `base`."""
        return (base + folded.delta).astype(base.dtype)

    def observe(self, round: int, seen: Mapping[str, tuple[Divergence, float]]) -> None:
        """What the round showed: block -> (divergence, norm of its weights), trained blocks only."""

    def heard(self, round: int, heads: Sequence[UpdateHead]) -> None:
        """What the round's devices said of it, in device order: a learned deadline learns from their times and losses.

        The round counts as long as its slowest device needed by its own stopwatch, so that a replay learns the same.
        """
        if self.pacing and heads:
            samples = sum(h.samples for h in heads)
            loss = sum(h.loss * h.samples for h in heads) / max(samples, 1)
            self.pacing.heard(max(h.seconds for h in heads), loss)

    def serving(self, blocks: Mapping[str, Vector]) -> Serving | None:
        """Which weights answer for which modalities; None where the common blocks do."""
        return None

    def divergence(self) -> dict[str, float]:
        """Smoothed divergence per block, for the display; empty where the method keeps none."""
        return {}

    def state(self) -> dict[str, Any]:
        """What must survive a restart, as values that JSON takes."""
        return {"pacing": self.pacing.state()} if self.pacing else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        if self.pacing and "pacing" in state:
            self.pacing = LearnedDeadline.restored(state["pacing"])

    # -- what many methods need --------------------------------------------------------------------

    def local(self) -> Local:
        """The local rule of this method: the common one with the method's own changes."""
        return self.settings.local

    def cap(self, member: Member) -> int:
        """Local steps of a full round: `epochs` over its windows."""
        return max(1, ceil(self.settings.epochs * member.windows / self.settings.local.batch))

    def work(self, member: Member) -> Work:
        """The member's cost model under this method's local rule."""
        rule = self.local()
        return work(
            self.spec,
            member,
            rule.batch,
            everything=rule.zero_fill,
            cached=rule.cache,
            dropout=rule.dropout,
            passes=rule.passes(len(member.owned)),
            looks=rule.looks(len(member.owned)),
        )

    def full_seconds(self, member: Member) -> float:
        """Seconds of the member's full round: everything it computes, for all its epochs."""
        w = self.work(member)
        return w.seconds(dict.fromkeys((*w.blocks, SHARED), self.cap(member)))

    def deadline(self, members: Sequence[Member]) -> float:
        """Seconds of a round, by the settings; infinite without a deadline."""
        wanted = self.settings.deadline
        if wanted == "none" or not members:
            return float("inf")
        # A device that has just begun to fill its windows has a full round of next to nothing: it must not hurry all.
        usual = float(np.median([m.windows for m in members]))
        members = [m for m in members if m.windows >= FILLED * usual]
        full = [self.full_seconds(m) for m in members]
        if self.pacing:
            return self.pacing.deadline(min(full), max(full), self.reach(members))
        if wanted == "fastest":
            return min(full)
        if wanted == "cohorts":
            return max(min(full), self.reach(members))
        number = float(wanted)
        return float(np.quantile(full, number)) if number < 1 else number

    def reach(self, members: Sequence[Member]) -> float:
        """Seconds in which half of every cohort takes REACH of its local steps on the cohort's block.

        With less the only owners of a modality may be too slow for a single step: then nobody trains it, ever. A device
        trains the block alone or all that it owns: few steps on everything can cost less than the features of the rest.
        """
        need: dict[str, list[float]] = {}
        for member in members:
            w, steps = self.work(member), ceil(REACH * self.cap(member))
            whole = w.seconds(dict.fromkeys((*member.owned, SHARED), steps))
            for m in member.owned:
                need.setdefault(m, []).append(min(whole, w.seconds({m: steps, SHARED: steps})))
        longest = max((sorted(seconds)[(len(seconds) - 1) // 2] for seconds in need.values()), default=0.0)
        return longest * (1 + 1e-9)  # or rounding could cost the step

    def budget(self, deadline: float) -> Budget:
        """The common limits of a device in a round of `deadline` seconds."""
        s = self.settings
        return Budget(deadline, s.joules or float("inf"), s.bytes or float("inf"))

    def planned(self, w: Work, steps: dict[str, int], budget: Budget) -> Plan:
        """A plan with its prediction."""
        return Plan(steps, budget, self.local(), w.seconds(steps), w.joules(steps))
