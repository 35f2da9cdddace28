"""Narrower networks: HeteroFL (Diao et al. 2021, arXiv 2010.01264), FedRolex (Alam et al. 2022, arXiv 2212.01548)."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from coordinator.strategies.submodels import Part, SubModels, speed_of
from coordinator.work import Member
from models.cost import BYTES_PER_VALUE, block_costs
from models.local import Local
from models.partition import Vector
from models.spec import Mode

Channels = npt.NDArray[np.int64]


class HeteroFL(SubModels):
    """A device keeps the first ceil(rate * C) channels of every hidden layer, by the rate that fits its speed.

    Its cross-entropy masks classes that it has no window of. Scaler and static batch normalisation have no place in a
    model without normalisation layers.
    """

    name = "heterofl"
    source = "arXiv 2010.01264"
    absent = "fed as zeros and trained like the others"
    RATES: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.25, 0.125, 0.0625)

    def local(self) -> Local:
        return replace(super().local(), own_classes=True)

    def part(self, round: int, member: Member, fastest: float) -> Part:
        """The widest network whose arithmetic, about rate^2 of the full one's, fits the fastest device's time."""
        speed = speed_of(self, member, fastest)
        rate = next((r for r in self.RATES if r * r <= speed), self.RATES[-1])
        masks = self.masks(round, rate)
        kept = {b: float(mask.mean()) for b, mask in masks.items()}
        costs = block_costs(self.spec)
        whole = sum(c.forward + c.backward for c in costs.values())
        compute = sum((c.forward + c.backward) * kept[b] for b, c in costs.items()) / whole
        size = sum(c.bytes for c in costs.values())
        sent = sum(mask.sum() * BYTES_PER_VALUE for mask in masks.values()) / size
        return Part(masks, True, compute, float(sent))

    def channels(self, round: int, count: int, rate: float) -> Channels:
        """Which of a hidden layer's channels are kept."""
        return np.arange(ceil(rate * count))

    def masks(self, round: int, rate: float) -> dict[str, Vector]:
        """0/1 per value of every block: all of a tensor's rows and columns whose channels are kept."""
        hidden = [self.channels(round, width, rate) for width in self.spec.widths]
        fusion = self.channels(round, self.spec.fusion, rate)
        masks = {}
        for block in self.cut_.blocks:
            mask = np.zeros(self.cut_.size(block), np.float32)
            for name, view in self.cut_.views(block, mask).items():
                view[np.ix_(*self._kept(name, view.shape, hidden, fusion))] = 1.0
            masks[block] = mask
        return masks

    def _kept(self, name: str, shape: tuple[int, ...], hidden: list[Channels], fusion: Channels) -> list[Channels]:
        whole = [np.arange(n) for n in shape]
        if name.startswith("encoders.") and name.split(".")[-1] in ("weight", "bias"):
            layer = int(name.split(".")[2])
            whole[0] = hidden[layer]
            if layer and len(shape) == 3:
                whole[1] = hidden[layer - 1]
        elif name.startswith("fusion.weight"):
            whole = [fusion, self._features(shape[1], hidden)]
        elif name.startswith("fusion.lora_a"):
            whole[1] = self._features(shape[1], hidden)
        elif name in ("fusion.bias", "fusion.lora_b"):
            whole[0] = fusion
        elif name == "head.weight":
            whole[1] = fusion
        return whole

    def _features(self, count: int, hidden: list[Channels]) -> Channels:
        """Features of kept channels: a channel's bins lie next to each other."""
        if not hidden or self.spec.mode is Mode.LORA:
            return np.arange(count)  # frozen encoders keep their width
        features: Channels = (hidden[-1][:, None] * self.spec.bins + np.arange(self.spec.bins)).ravel()
        return features


class FedRolex(HeteroFL):
    """The same with a window of channels that rolls on by one every round, so that all are trained."""

    name = "fedrolex"
    source = "arXiv 2212.01548"

    def channels(self, round: int, count: int, rate: float) -> Channels:
        rolled: Channels = np.sort(np.roll(np.arange(count), -(round - 1))[: ceil(rate * count)])
        return rolled
