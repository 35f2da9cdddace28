"""MFedMC: Communication-Efficient Multimodal Federated Learning: Joint Modality and Client Selection.

Yuan, Han, Wang, Upadhyay, Brinton, 2024, arXiv 2401.16685.

Every modality has a model of its own; a device's predictions are fused late. A device proposes the modalities that are
worth most to it: what they contribute to its fused prediction (Shapley value), how small their model is, how long it
has not been sent. Of those who propose a modality the ones with the lowest loss upload it, and the server averages
these.

Here, unlike there: late fusion is the mean of the class probabilities, where devices there train a fusion module of
their own; the Shapley value is therefore exact, of the true class's probability over the device's training windows,
mean of absolute values. The three terms are each divided by the device's largest and weighed alike. Of a modality's
owners the share that uploads is at least one device. Losses and proposals are a few bytes and not charged; a device
that uploads waits until the slowest has said its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import ClassVar

import numpy as np

from coordinator.strategies.base import Settings
from coordinator.strategies.unimodal import Unimodal
from models.partition import Vector
from models.spec import ModelSpec


class MFedMC(Unimodal):
    """`proposals` modalities a device, uploaded by the `share` of its owners whose loss is lowest."""

    name = "mfedmc"
    source = "arXiv 2401.16685"
    selective = True
    proposals: ClassVar[float] = 1
    share: ClassVar[float] = 0.2

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self._uploaded: dict[tuple[str, str], int] = {}  # (device, modality) -> round of its last upload

    def worth(self, probabilities: Mapping[str, Vector], y: Vector) -> dict[str, float]:
        """Mean |Shapley value| of each modality for the probability of the true class."""
        true = np.stack([p[np.arange(len(y)), y] for p in probabilities.values()])  # (modalities, n)
        values = np.abs(shapley_of_mean(true, 1.0 / self.spec.classes)).mean(1)
        return dict(zip(probabilities, values.tolist(), strict=True))

    def choose(self, round: int, seen: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, tuple[str, ...]]:
        """Devices propose, the lowest losses win."""
        asking: dict[str, list[tuple[float, str]]] = {}
        owners: dict[str, int] = dict.fromkeys(self.spec.names, 0)
        for device, results in seen.items():
            priority = self.priority(round, device, {m: worth for m, (_, worth) in results.items()})
            for m in sorted(results, key=lambda m: -priority[m])[: int(self.proposals)]:
                asking.setdefault(m, []).append((results[m][0], device))
            for m in results:
                owners[m] += 1
        chosen: dict[str, tuple[str, ...]] = dict.fromkeys(seen, ())
        for m in self.spec.names:
            for _, device in sorted(asking.get(m, []))[: ceil(self.share * owners[m])]:
                chosen[device] = (*chosen[device], m)
                self._uploaded[device, m] = round
        return chosen

    def priority(self, round: int, device: str, worth: Mapping[str, float]) -> dict[str, float]:
        """A third each: worth, smallness, and rounds since the device last uploaded the modality."""
        size = {m: float(self.costs[m].bytes) for m in worth}
        since = {m: float(round - self._uploaded.get((device, m), 0)) for m in worth}
        top = [max(values.values()) or 1.0 for values in (worth, size, since)]
        return {m: (worth[m] / top[0] + 1 - size[m] / top[1] + since[m] / top[2]) / 3 for m in worth}


def shapley_of_mean(values: Vector, nothing: float) -> Vector:
    """Shapley values of the game v(S) = mean of `values` over S, v(empty) = `nothing`: (players, n) -> (players, n).

    Joining s >= 1 others changes the mean by (own - their mean) / (s + 1), and s is uniform over 0 .. players - 1.
    """
    players = len(values)
    others = (values.sum(0) - values) / max(players - 1, 1)
    rest = sum(1.0 / (s + 1) for s in range(1, players))
    result: Vector = ((values - nothing) + rest * (values - others)) / players
    return result
