"""Momentum at the server, block by block (FedAvgM: Hsu et al. 2019, arXiv 1909.06335), for RELIEF and for FedAvg."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from coordinator.aggregation import Folded
from coordinator.strategies.base import Settings, Strategy
from coordinator.strategies.fedavg import FedAvg, FedAvgMaskedCached
from coordinator.strategies.relief import CohortSteps, Relief
from models.partition import Vector
from models.spec import ModelSpec


class ServerMomentum(Strategy):
    """Every block keeps a velocity of its own, so a rarely trained cohort's is not washed out by the others' rounds.

    v <- beta v + Delta, and the block moves by Delta + beta v (Nesterov's form); a block that nobody trained rests.
    """

    beta: ClassVar[float] = 0.8

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self._velocity: dict[str, Vector] = {}

    def apply(self, block: str, base: Vector, folded: Folded) -> Vector:
        velocity = self.beta * self._velocity.get(block, np.zeros(base.size)) + folded.delta
        self._velocity[block] = velocity
        return (base + folded.delta + self.beta * velocity).astype(base.dtype)

    def state(self) -> dict[str, Any]:
        kept = {block: b64encode(v.astype("<f8").tobytes()).decode() for block, v in self._velocity.items()}
        return {**super().state(), "velocity": kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._velocity = {block: np.frombuffer(b64decode(text), "<f8") for block, text in state["velocity"].items()}


class ReliefMomentum(ServerMomentum, Relief):
    """RELIEF with a velocity per block."""

    name = "relief-momentum"


class CohortStepsMomentum(ServerMomentum, CohortSteps):
    """Ablation: the same without divergence; everything owned is trained for as many steps as the deadline allows."""

    name = "cohort-steps-momentum"


class FedAvgM(ServerMomentum, FedAvg):
    """Zero-filled FedAvg with server momentum: what momentum brings without the rest."""

    name = "fedavgm"
    source = "arXiv 1909.06335"


class FedAvgMMaskedCached(ServerMomentum, FedAvgMaskedCached):
    """Masked and cached FedAvg with server momentum."""

    name = "fedavgm-masked-cached"
    source = "arXiv 1909.06335"
