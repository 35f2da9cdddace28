"""What a method would gain by knowing: its allocation against the best one, both valued by what is true.

Before a round every owner trains everything it owns, in the background: nothing of it is charged, sent or folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log1p

import numpy as np

from coordinator.aggregation import Contribution, Divergence, fold
from coordinator.allocation import allocate
from coordinator.strategies.base import Strategy
from coordinator.work import Member
from models.local import effective_steps
from models.partition import Vector
from models.spec import SHARED
from tools.lab.engine import Engine, Job
from tools.lab.world import LabDevice

Seen = dict[str, tuple[Divergence, float]]


@dataclass(frozen=True)
class Regret:
    """One round: sum over devices and blocks of U_m log(1 + s), as allocated and at best under the same budgets.

    U is the true divergence times the relative update norm, the largest of the round scaled to 1.
    """

    round: int
    seconds: float  # simulated, when the round began
    chosen: float
    best: float


def truth(
    engine: Engine,
    strategy: Strategy,
    round: int,
    blocks: Mapping[str, Vector],
    members: Sequence[tuple[Member, LabDevice]],
) -> Seen:
    """Block -> (its cohort's divergence, norm of its weights), had every owner trained it in full this round.

    By the method's local rule with this round's own draws, in full precision.
    """
    local = strategy.local()
    jobs = []
    for member, device in members:
        steps = dict.fromkeys((*member.owned, SHARED), strategy.cap(member))
        jobs.append(Job(device.id, round, device.windows, device.owned, steps, blocks, local))
    works = engine.train(jobs)
    seen = {}
    for block, base in blocks.items():
        cohort = (
            Contribution(job.device, len(job.windows), effective_steps(work.steps[block], local.momentum), delta)
            for job, work in zip(jobs, works, strict=True)
            if (delta := work.deltas.get(block)) is not None
        )
        if folded := fold(base.size, cohort):
            seen[block] = folded.divergence, float(np.linalg.norm(base.astype(np.float64)))
    return seen


def regret(
    strategy: Strategy,
    members: Sequence[Member],
    assigned: Mapping[str, Mapping[str, int]],
    worth: Mapping[str, float],
) -> tuple[float, float]:
    """(value of what was assigned, best value) of a round; `assigned`: device -> block -> steps, `worth`: U_m.

    The best is every device's own within its budget, without the fleet's floors: a method that knows everything and
    keeps floors regrets what they cost.
    """
    budget = strategy.budget(strategy.deadline(members))
    chosen = best = 0.0
    for member in members:
        chosen += _value(assigned.get(member.id, {}), worth)
        best += _value(allocate(strategy.work(member), worth, budget, strategy.cap(member)), worth)
    return chosen, best


def _value(steps: Mapping[str, int], worth: Mapping[str, float]) -> float:
    return sum(worth[block] * log1p(s) for block, s in steps.items() if block != SHARED)
