"""FedProx (Li et al. 2020, arXiv 1812.06127): FedAvg with a squared pull of mu / 2 towards the round's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from coordinator.strategies.fedavg import FedAvg
from models.local import Local


class FedProx(FedAvg):
    """Zero-filled like FedAvg, local steps held near the global weights."""

    name = "fedprox"
    source = "arXiv 1812.06127"
    mu: ClassVar[float] = 0.01

    def local(self) -> Local:
        return replace(super().local(), prox=self.mu)
