"""FedAvg (McMahan et al. 2017, arXiv 1602.05629) as it is run where modalities are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.aggregation import Weighting
from coordinator.allocation import most_steps
from coordinator.strategies.base import Plan, Strategy
from coordinator.work import Member
from models.local import Local
from models.spec import SHARED


class FedAvg(Strategy):
    """Zero-filled: every device runs and trains the full model, absent modalities are fed as zeros."""

    name = "fedavg"
    source = "arXiv 1602.05629"
    absent = "fed as zeros and trained like the others"
    weighting = Weighting.DILUTED
    cache = False
    zero_fill = True
    cut = False

    def local(self) -> Local:
        """No feature cache: nothing is frozen, and plain FedAvg has none in lora either."""
        return replace(self.settings.local, zero_fill=self.zero_fill, cache=self.cache, dropout=0.0)

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        """Everything, for all epochs; with `cut` for as many steps as the deadline allows."""
        deadline = self.deadline(members) if self.cut else float("inf")
        plans = {}
        for member in members:
            w, steps = self.work(member), self.cap(member)
            budget = self.budget(deadline)
            if self.cut:
                steps = most_steps(w, w.blocks, budget, steps)
            if steps:
                plans[member.id] = self.planned(w, dict.fromkeys((*w.blocks, SHARED), steps), budget)
        return plans


class FedAvgMasked(FedAvg):
    """Absent modalities are not computed; their owners' mean is still diluted by everybody's samples."""

    name = "fedavg-masked"
    absent = "not computed; counts as an unchanged block in the mean"
    zero_fill = False


class FedAvgMaskedCached(FedAvgMasked):
    """Masked, and frozen features are kept like RELIEF's: what the cache alone brings."""

    name = "fedavg-masked-cached"
    cache = True


class FedAvgMaskedCut(FedAvgMaskedCached):
    """Masked and cached, with the steps cut to the deadline: what a deadline alone brings."""

    name = "fedavg-masked-cut"
    cut = True
