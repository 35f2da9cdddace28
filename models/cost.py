"""What a block costs: floating-point operations per window and bytes on the wire, from the spec alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from models.partition import partition
from models.spec import SHARED, Mode, ModelSpec, conv_lengths

BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class BlockCost:
    """FLOPs per window (a multiply-add counts as two) and bytes of the trained tensors.

    encode        forward pass of the encoder, needed whenever its features are not cached
    fuse          forward pass of this block's part of fusion layer and head
    backward      backward pass when the block is trained
    bytes         size of the block's update and of its download
    """

    encode: float
    fuse: float
    backward: float
    bytes: int

    @property
    def forward(self) -> float:
        return self.encode + self.fuse


@lru_cache(maxsize=64)  # a coordinator asks for every device in every round
def block_costs(spec: ModelSpec) -> Mapping[str, BlockCost]:
    """Cost of every block of the model; the backward pass costs twice the forward it differentiates."""
    cut = partition(spec)
    costs = {}
    for i in spec.inputs:
        encode, inside = 0.0, i.channels
        lengths = conv_lengths(spec, i.samples)
        for outside, length in zip(spec.widths, lengths[1:], strict=True):
            encode += 2.0 * outside * inside * spec.kernel * length
            inside = outside
        d_m = spec.features(i.name)
        fuse = 2.0 * spec.fusion * d_m
        if spec.mode is Mode.FULL:
            # The first convolution needs no gradient for its input.
            first = 2.0 * spec.widths[0] * i.channels * spec.kernel * lengths[1] if spec.widths else 0.0
            backward = 2.0 * encode - first + (2.0 if spec.widths else 1.0) * fuse
        else:
            lora = 2.0 * spec.rank * (d_m + spec.fusion)
            fuse += lora
            backward = 2.0 * lora + (2.0 * encode + fuse if spec.encoder_rank else 0.0)
        costs[i.name] = BlockCost(encode, fuse, backward, cut.size(i.name) * BYTES_PER_VALUE)
    head = 2.0 * spec.fusion * spec.classes
    costs[SHARED] = BlockCost(0.0, head, 2.0 * head, cut.size(SHARED) * BYTES_PER_VALUE)
    return MappingProxyType(costs)


def round_flops(
    spec: ModelSpec,
    present: Collection[str],
    steps: Mapping[str, int],
    batch: int,
    windows: int,
    *,
    cached: bool = True,
    resident: bool = False,
) -> float:
    """FLOPs of one device's round.

    present   modalities the device computes; steps  local steps per trained block (the shared one included)
    cached    features of blocks that are not trained are computed once per window and round
    resident  features of frozen encoders are already there from earlier rounds (lora without encoder adapters)
    """
    costs = block_costs(spec)
    total_steps = max(steps.values(), default=0)
    seen = min(windows, total_steps * batch)  # windows that are touched at all
    flops = costs[SHARED].fuse * total_steps * batch
    flops += costs[SHARED].backward * steps.get(SHARED, 0) * batch
    for name in present:
        cost, trained = costs[name], steps.get(name, 0)
        encoder_frozen = spec.mode is Mode.LORA and not spec.encoder_rank
        live = 0 if encoder_frozen else trained
        flops += cost.fuse * total_steps * batch + cost.backward * trained * batch + cost.encode * live * batch
        still = total_steps - live
        if still:
            once = 0 if resident and encoder_frozen else seen
            flops += cost.encode * (min(once, still * batch) if cached else still * batch)
    return flops
