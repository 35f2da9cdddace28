"""RELIEF with momentum at the server, block by block (FedAvgM: Hsu et al. 2019, arXiv 1909.06335)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from coordinator.aggregation import Folded
from coordinator.strategies.base import Settings
from coordinator.strategies.relief import Relief
from models.partition import Vector


class ReliefMomentum(Relief):
    """Every block keeps a velocity of its own, so a rarely trained cohort's is not washed out by the others' rounds.

    v <- beta v + Delta, and the block moves by Delta + beta v (Nesterov's form); untrained blocks rest.
    """

    name = "relief-momentum"
    beta: ClassVar[float] = 0.5

    def __init__(self, spec: Any, settings: Settings) -> None:
        super().__init__(spec, settings)
        self._velocity: dict[str, Vector] = {}

    def apply(self, block: str, base: Vector, folded: Folded) -> Vector:
        velocity = self.beta * self._velocity.get(block, np.zeros(base.size)) + folded.delta
        self._velocity[block] = velocity
        return (base + folded.delta + self.beta * velocity).astype(base.dtype)

    def state(self) -> dict[str, Any]:
        kept = {block: v.astype("<f4").tobytes() for block, v in self._velocity.items()}
        return {**super().state(), "velocity": kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._velocity = {b: np.frombuffer(raw, "<f4").astype(np.float64) for b, raw in state["velocity"].items()}
