"""RELIEF with perfect knowledge: what estimating divergence costs is measured against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.aggregation import Divergence
from coordinator.divergence import worth
from coordinator.strategies.ablations import ReliefMomentumSamples
from coordinator.strategies.base import Plan, Settings
from coordinator.work import Member


class Oracle(ReliefMomentumSamples):
    """Allocates like RELIEF, but by every cohort's true divergence in this very round, which only a simulator can know.

    Nothing is smoothed, and there is neither warm-up nor bonus, since there is nothing to find out. Floors are kept.
    """

    name = "oracle"
    simulator_only = True
    warm_up = 0

    def __init__(self, spec: Any, settings: Settings) -> None:
        super().__init__(spec, settings)
        self._true: dict[str, float] = {}

    def reveal(self, seen: Mapping[str, tuple[Divergence, float]]) -> None:
        """What every owner of every block would send if it trained all it owns from the blocks as they are now."""
        self._true = worth(self.spec.names, seen)

    def utility(self, round: int) -> dict[str, float]:
        return self._true

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        if not self._true:
            raise TypeError(
                "the oracle sees updates that nobody sends, so it runs in the laboratory alone: `relief simulate` or "
                "`relief experiment run`; a fleet's coordinator needs another strategy, for example relief"
            )
        return super().plan(round, members)
