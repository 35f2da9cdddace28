"""Hostile devices in the lab: what they send, and who of a fleet they are.

flip      the opposite of what they learned
reverse   the opposite, fifty times
scale     what they learned, ten times
noise     noise of ten times its length, the same from all of them
label     what they learned from windows whose classes were exchanged
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from models.spec import SHARED
from tools.lab.engine import Engine, Job, Work

ATTACKS = ("flip", "reverse", "scale", "noise", "label")
DRAWS = ("cohort", "fleet")


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
            "reverse": lambda v: -50 * v,
            "scale": lambda v: 10 * v,
            "noise": lambda v: 10 * np.linalg.norm(v) / np.sqrt(v.size) * draw.standard_normal(v.size),
            "label": lambda v: v,
        }[self.attack]
        deltas = {block: change(vector).astype(vector.dtype) for block, vector in work.deltas.items()}
        return replace(work, deltas=deltas)


def cohorts(owned: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """block -> devices that train it, from device -> modalities; everybody trains the shared block."""
    found: dict[str, list[str]] = {SHARED: sorted(owned)}
    for device in sorted(owned):
        for modality in owned[device]:
            found.setdefault(modality, []).append(device)
    return found


def drawn(owned: Mapping[str, Sequence[str]], share: float, seed: int, *, by: str) -> set[str]:
    """The hostile devices.

    by   "cohort": as many as can be with at most `share` of every block's cohort, rounded to the nearest number, so a
         cohort of four has one at 20 and 30 %; "fleet": `share` of all devices, whatever that makes of a small cohort
    """
    everybody, chance = sorted(owned), random.Random(seed)
    if by == "fleet":
        return set(chance.sample(everybody, round(share * len(everybody))))
    left = {block: round(share * len(devices)) for block, devices in cohorts(owned).items()}
    hostile: set[str] = set()
    # Who owns much first: small cohorts are filled before limits elsewhere are used up.
    for device in sorted(chance.sample(everybody, len(everybody)), key=lambda d: -len(owned[d])):
        blocks = (*owned[device], SHARED)
        if all(left[block] > 0 for block in blocks):
            hostile.add(device)
            for block in blocks:
                left[block] -= 1
    return hostile


def worst(owned: Mapping[str, Sequence[str]], hostile: set[str]) -> float:
    """The largest hostile share of any block's cohort."""
    return max(len(hostile & set(devices)) / len(devices) for devices in cohorts(owned).values())
