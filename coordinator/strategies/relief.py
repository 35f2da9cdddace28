"""RELIEF (arXiv 2604.04243) and its ablations: cohort-wise blocks, budgets spent first where cohorts disagree most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from coordinator.aggregation import Divergence, Weighting
from coordinator.allocation import Steps, allocate, floors, most_steps, water_fill
from coordinator.divergence import Beliefs, Signal
from coordinator.strategies.base import Plan, Settings, Strategy
from coordinator.work import Budget, Member, Work
from models.spec import SHARED


class Relief(Strategy):
    """Cohort mean, step budgets under the deadline, blocks chosen by divergence, floors for every block."""

    name = "relief"
    source = "arXiv 2604.04243"
    absent = "not computed, not sent, never touched"
    dropout = 0.5
    signal: ClassVar[Signal] = Signal.WEIGHTED
    kappa: ClassVar[float] = 0.1
    choose: ClassVar[bool] = True  # whether blocks are chosen; otherwise everything owned is trained
    tau: ClassVar[int] = 4  # no block stays untouched for longer
    warm_up: ClassVar[int] = 2  # rounds in which everything owned is trained: first divergences are noise
    head_alone: ClassVar[bool] = False  # whether a device may train the shared block and none of its own

    def __init__(self, spec: Any, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.beliefs = Beliefs(spec.names, signal=self.signal, kappa=self.kappa)

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        """Floors first, then every device's best blocks x steps within what its budget leaves."""
        budget = self.budget(self.deadline(members))
        works = {m.id: self.work(m) for m in members}
        utility = self.utility(round)
        due = self.beliefs.due(self.tau) if self.choose and round > self.warm_up else []
        forced = floors(due, members, works, {m.id: budget for m in members})
        plans = {}
        for member in members:
            w = works[member.id]
            if self.choose and round > self.warm_up:
                steps = self.allot(w, utility, budget, self.cap(member), forced[member.id])
            else:
                steps = everything(w, budget, self.cap(member))
            # Without a step on a block of its own a device sits out: the head alone would follow the few modalities
            # of slow devices (docs/decisions/0007).
            if steps.keys() - {SHARED} or (self.head_alone and steps):
                plans[member.id] = self.planned(w, steps, budget)
        return plans

    def utility(self, round: int) -> dict[str, float]:
        """U_m: what a cohort's disagreement on block m makes it worth."""
        return self.beliefs.utility()

    def allot(self, w: Work, utility: Mapping[str, float], budget: Budget, cap: int, forced: set[str]) -> Steps:
        """One device's blocks and steps."""
        return allocate(w, utility, budget, cap, forced=forced)

    def observe(self, round: int, seen: Mapping[str, tuple[Divergence, float]]) -> None:
        self.beliefs.observe({block: values for block, values in seen.items() if block != SHARED})

    def divergence(self) -> dict[str, float]:
        return self.beliefs.divergence()

    def state(self) -> dict[str, Any]:
        return {**super().state(), **self.beliefs.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self.beliefs.restore(state)


def everything(w: Work, budget: Budget, cap: int) -> Steps:
    """All owned blocks for as many steps as the budget allows; where not one fits, the cheapest block alone."""
    for chosen in (w.blocks, *((m,) for m in sorted(w.blocks, key=lambda m: w.train[m] + w.upload[m]))):
        steps = most_steps(w, chosen, budget, cap)
        if steps:
            return {**dict.fromkeys(chosen, steps), SHARED: steps}
    return {}


class ReliefWater(Relief):
    """Steps of its own for every block, by water-filling."""

    name = "relief-water"

    def allot(self, w: Work, utility: Mapping[str, float], budget: Budget, cap: int, forced: set[str]) -> Steps:
        return water_fill(w, utility, budget, cap, forced=forced)


class CohortSteps(Relief):
    """Ablation: cohort mean and steps cut to the deadline, everything owned trained; divergence is not used."""

    name = "cohort-steps"
    choose = False


class CohortOnly(CohortSteps):
    """Ablation: the cohort mean alone, full rounds without a deadline."""

    name = "cohort-only"

    def deadline(self, members: Sequence[Member]) -> float:
        return float("inf")


class ReliefSamples(Relief):
    """Ablation: plain n_i weighting instead of the step-normalised mean."""

    name = "relief-samples"
    weighting = Weighting.SAMPLES
