"""FLISM: Federated Learning for Time-Series Healthcare Sensing with Incomplete Modalities.

Orzikulova, Kwak, Shin, Lee, 2024, arXiv 2405.11828.

Absent modalities are fed as zeros. A device that has several adds to the cross-entropy a supervised contrastive loss
(temperature 0.1, weight 1) between its windows and a second view of them in which some of its modalities, drawn once a
round, are zeros too; every device adds the divergence KL from the global model's predictions (weight 1). The server
averages with weights 1 / entropy of the devices' predictions: who is sure counts more.

Here, unlike there: the second view carries no Gaussian noise; it is run through the encoders all the same, and charged
as a second forward and backward pass. The contrast acts on the fusion layer's output. The teacher of the KL term is the
global model that the device was sent, where a second model, the devices' plain mean, is sent there as well, so the
download is not doubled. The entropy is the mean over the round's last epoch while it is trained, instead of one more
look at all windows. No weight decay, and every device takes part in every round, as for all methods here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isfinite, log
from typing import ClassVar

from coordinator.aggregation import Contribution, Folded, Weighting, fold
from coordinator.events import UpdateHead
from coordinator.strategies.base import Settings
from coordinator.strategies.fedavg import FedAvg
from models.local import Local
from models.spec import ModelSpec

PARTS = 10**6  # weights are handed to the fold as whole numbers, so they are exact to a millionth


class FLISM(FedAvg):
    """Zero-filled, contrast and KL on the device, weights 1 / entropy."""

    name = "flism"
    source = "arXiv 2405.11828"
    absent = "fed as zeros and trained like the others; a second view shows more of them as zeros"
    contrast: ClassVar[float] = 1.0
    distil: ClassVar[float] = 1.0

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self._weights: dict[str, int] = {}

    def local(self) -> Local:
        return replace(super().local(), contrast=self.contrast, distil=self.distil)

    def weigh(self, heads: Sequence[UpdateHead]) -> None:
        """1 / entropy; a device that did not tell its own, or whose training diverged, counts as one that guesses."""
        for head in heads:
            told = isfinite(head.entropy) and head.entropy > 0
            entropy = head.entropy if told else log(self.spec.classes)
            self._weights[head.device] = max(1, round(PARTS / max(entropy, 1e-3)))

    def fold(self, block: str, size: int, contributions: Iterable[Contribution], total_samples: int) -> Folded | None:
        samples = 0

        def weighed() -> Iterable[Contribution]:
            nonlocal samples
            for one in contributions:
                samples += one.samples
                yield replace(one, samples=self._weights[one.device])

        folded = fold(size, weighed(), Weighting.SAMPLES)
        return None if folded is None else replace(folded, samples=samples)
