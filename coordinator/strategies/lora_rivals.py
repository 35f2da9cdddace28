"""LoRA methods of the literature: FedIT, FFA-LoRA, FedSA-LoRA, FediLoRA. In mode full they are masked FedAvg."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil
from typing import ClassVar

import numpy as np

from coordinator.aggregation import Contribution, Folded
from coordinator.strategies.base import Settings
from coordinator.strategies.submodels import Part, SubModels, speed_of
from coordinator.work import Member
from models.partition import Vector, without
from models.spec import SHARED, ModelSpec


class _Masked(SubModels):
    """Absent modalities are not computed; each coordinate is averaged over the devices that trained it."""

    absent = "not computed"
    zero_fill = False
    cache = True

    def chosen(self, member: Member, fastest: float) -> Mapping[str, Vector]:
        """The 0/1 masks of the member."""
        return {b: np.ones(self.cut_.size(b), np.float32) for b in self.cut_.blocks}

    def part(self, round: int, member: Member, fastest: float) -> Part:
        masks = self.chosen(member, fastest)
        mine = [masks[b] for b in (*member.owned, SHARED)]
        return Part(masks, False, 1.0, float(sum(m.sum() for m in mine) / sum(m.size for m in mine)))


class FedIT(_Masked):
    """A and B averaged like any weights (their product's mean differs from the product of their means)."""

    name = "fedit"
    source = "arXiv 2305.05644"


class FFALoRA(_Masked):
    """A stays as it was drawn, B alone is trained: the mean of the products is then exact."""

    name = "ffa-lora"
    source = "arXiv 2403.12313"

    def chosen(self, member: Member, fastest: float) -> Mapping[str, Vector]:
        return without(self.cut_, "fusion.lora_a")


class FediLoRA(_Masked):
    """Ranks by speed; each slice of the rank is averaged over the devices that hold it."""

    name = "fedilora"
    source = "arXiv 2509.06984"

    def chosen(self, member: Member, fastest: float) -> Mapping[str, Vector]:
        rank = max(1, ceil(self.spec.rank * speed_of(self, member, fastest)))
        masks = {}
        for block in self.cut_.blocks:
            mask = np.ones(self.cut_.size(block), np.float32)
            for name, view in self.cut_.views(block, mask).items():
                if name.startswith("fusion.lora_a"):
                    view[rank:] = 0.0
                elif name == "fusion.lora_b":
                    view[:, rank:] = 0.0
            masks[block] = mask
        return masks


class FedSALoRA(_Masked):
    """A is shared; B stays on the device, which goes on from its own. The global B is the mean of the devices' own."""

    name = "fedsa-lora"
    source = "arXiv 2410.01463"
    own: ClassVar[str] = "fusion.lora_b"

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self._mask = without(self.cut_, self.own)[SHARED]  # 0 where values are the device's own
        self._personal: dict[str, Vector] = {}  # device -> its own shared block
        self._offset: dict[str, Vector] = {}  # device -> where it started, seen from the global block

    def base(self, device: str, blocks: Mapping[str, Vector]) -> Mapping[str, Vector]:
        """The global blocks, with the device's own B."""
        common = blocks[SHARED]
        own = self._personal.get(device, common)
        start = np.where(self._mask == 0, own, common)
        self._offset[device] = start - common
        return {**blocks, SHARED: start}

    def trained(self, device: str, base: Mapping[str, Vector], deltas: Mapping[str, Vector]) -> None:
        self._personal[device] = base[SHARED] + deltas[SHARED]

    def fold(self, block: str, size: int, contributions: Iterable[Contribution], total_samples: int) -> Folded | None:
        """Seen from the global block, so that B becomes the mean of the devices' own."""
        if block != SHARED:
            return super().fold(block, size, contributions, total_samples)
        seen = (replace(one, delta=one.delta + self._offset[one.device]) for one in contributions)
        return super().fold(block, size, seen, total_samples)

    def part(self, round: int, member: Member, fastest: float) -> Part:
        part = super().part(round, member, fastest)
        away = sum(float((1 - m).sum()) for m in without(self.cut_, self.own).values())
        mine = sum(part.masks[b].size for b in (*member.owned, SHARED))
        return Part(part.masks, False, 1.0, 1.0 - away / mine)
