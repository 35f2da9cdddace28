"""FedBuff (Nguyen et al. 2022, arXiv 2106.06639): no rounds; a full buffer makes a step, stale updates weigh less."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import ClassVar

import numpy as np

from coordinator.strategies.fedavg import FedAvg
from models.partition import Vector


class FedBuff(FedAvg):
    """Devices train all the time, from whatever model is there when they begin. The simulator alone runs it."""

    name = "fedbuff"
    source = "arXiv 2106.06639"
    absent = "fed as zeros and trained like the others"
    simulator_only = True
    buffer: ClassVar[int] = 10

    def weight(self, staleness: int) -> float:
        """Of an update that began `staleness` steps of the server ago."""
        return 1.0 / sqrt(1.0 + staleness)

    def step(self, base: Vector, deltas: Sequence[Vector], staleness: Sequence[int]) -> Vector:
        """The block after a full buffer: the mean of the weighted updates (weights not normed, as in the paper)."""
        total = np.zeros(base.size)
        for delta, stale in zip(deltas, staleness, strict=True):
            total += self.weight(stale) * delta.astype(np.float64)
        moved: Vector = (base + total / len(deltas)).astype(base.dtype)
        return moved
