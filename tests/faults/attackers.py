"""python -m tests.faults.attackers: hostile devices against the plain mean and every robust rule, with F1 beside it.

A simulated fleet on real recordings (RELIEF_DATA), hostile devices drawn by seed among all of it:
    flip      sends the opposite of what it learned
    scale     sends it ten times
    noise     sends noise of ten times its length
    label     learned from windows whose classes were exchanged
The norm bound of the coordinator's edge is not in play: what is compared is aggregation alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from coordinator.robust import Robust, Rule
from models.spec import Mode
from tools.lab.cells import made, prepared
from tools.lab.engine import Engine, Job, Work
from tools.lab.plan import Cell, Experiment, Method
from tools.lab.simulate import Run

ATTACKS = ("flip", "scale", "noise", "label")


class Hostile:
    """The lab's engine, with some of the devices hostile."""

    def __init__(self, inner: Engine, attack: str, devices: set[str], seed: int) -> None:
        self.inner, self.attack, self.devices, self.seed = inner, attack, devices, seed

    def train(self, jobs: Sequence[Job]) -> list[Work]:
        """Train everybody, then let the hostile ones change what they send."""
        bad = [job for job in jobs if job.device in self.devices]
        if self.attack == "label" and bad:
            honest = [job for job in jobs if job.device not in self.devices]
            right = self.inner.y
            works = dict(zip((j.device for j in honest), self.inner.train(honest), strict=True)) if honest else {}
            self.inner.y = torch.roll(torch.arange(int(right.max()) + 1), 1)[right]
            works |= zip((j.device for j in bad), self.inner.train(bad), strict=True)
            self.inner.y = right
            return [works[job.device] for job in jobs]
        return [self._twisted(job, work) for job, work in zip(jobs, self.inner.train(jobs), strict=True)]

    def _twisted(self, job: Job, work: Work) -> Work:
        if job.device not in self.devices:
            return work
        draw = np.random.default_rng([self.seed, job.round])
        change = {
            "flip": lambda v: -v,
            "scale": lambda v: 10 * v,
            "noise": lambda v: 10 * np.linalg.norm(v) / np.sqrt(v.size) * draw.standard_normal(v.size),
            "label": lambda v: v,
        }[self.attack]
        deltas = {block: change(vector).astype(vector.dtype) for block, vector in work.deltas.items()}
        return replace(work, deltas=deltas)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.attackers", description=__doc__)
    parser.add_argument("--fleet", default="coupled")
    parser.add_argument("--method", default="cohort-steps")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    method = Method(strategy=given.method, deadline="fastest")
    plan = Experiment(name="attackers", fleets=[given.fleet], reference=given.method, methods={given.method: method})
    cell = Cell(given.method, given.fleet, Mode.FULL, 0, given.seed, given.rate)
    where, engine, blocks, frozen = prepared(plan.model_dump_json(), cell)
    everybody = sorted(d.id for d in where.devices)

    def f1(rule: Rule | None, attack: str, share: float) -> str:
        count = round(share * len(everybody))
        hostile = set(random.Random(given.seed).sample(everybody, count))
        strategy = made(method, where, plan, cell)
        robust = Robust(rule, share=max(share, 0.1)) if rule else None
        strategy.settings = replace(strategy.settings, robust=robust)
        run = Run(where, strategy, Hostile(engine, attack, hostile, given.seed), dict(blocks), dict(frozen),  # type: ignore[arg-type]
                  rounds=given.rounds, every=given.rounds)  # fmt: skip
        with np.errstate(all="ignore"):
            scores = run.go()[-1].scores
        return f"{scores['in_subject']:.3f} / {scores['held_out']:.3f}"

    rules: list[Rule | None] = [None, *Rule]
    print(f"macro-F1 in-subject / held-out after {given.rounds} rounds of {given.method} on {given.fleet}, "
          f"{len(everybody)} devices, seed {given.seed}; simulated, one run each")  # fmt: skip
    print("| attack | hostile | " + " | ".join(rule.value if rule else "mean" for rule in rules) + " |")
    print("|---|---|" + "---|" * len(rules))
    for attack, share in [("none", 0.0)] + [(a, s) for a in given.attacks for s in given.shares]:
        row = " | ".join(f1(rule, "flip" if attack == "none" else attack, share) for rule in rules)
        print(f"| {attack} | {share:.0%} | {row} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
