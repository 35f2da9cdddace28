"""Simulated seconds and joules of a device's round, from the cost model: FLOPs / speed + bytes / bandwidth."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from models.cost import BYTES_PER_VALUE, BlockCost
from models.local import Local
from models.spec import SHARED, Mode, ModelSpec
from tools.lab.engine import Work
from tools.lab.world import LabDevice

# Bytes per value of an update on the wire (models.local.Local.wire).
WIRE = {"<f4": 4, "<f8": 8, "<f2": 2, "|i1": 1}


@dataclass(frozen=True)
class Spent:
    """One device's round on the simulated clock. `joules` is above idle, while computing."""

    compute: float
    down: float
    up: float
    latency: float
    joules: float
    bytes_up: int
    bytes_down: int

    @classmethod
    def of(cls, device: LabDevice, flops: float, up: int, down: int) -> Spent:
        """What so much arithmetic and so many bytes each way take this device; a rate of 0 is no limit."""
        compute = flops / device.flops
        return cls(
            compute=compute,
            down=down / device.down if device.down else 0.0,
            up=up / device.rate if device.rate else 0.0,
            latency=device.latency,
            joules=device.watts * compute,
            bytes_up=up,
            bytes_down=down,
        )

    @property
    def seconds(self) -> float:
        return self.latency + self.down + self.compute + self.up


def work_flops(
    spec: ModelSpec,
    costs: Mapping[str, BlockCost],
    work: Work,
    local: Local,
    windows: int,
    *,
    resident: bool = False,
) -> float:
    """FLOPs of what was done, counted step by step; without dropout the same as models.cost.round_flops.

    resident   features of encoders that are frozen for good are there from an earlier round
    """
    total = work.steps.get(SHARED, 0) or max(work.there.values(), default=0)
    passes, looks = work.passes, work.looks
    shared = costs[SHARED]
    flops = (shared.fuse * total * looks + shared.backward * work.steps.get(SHARED, 0) * passes) * local.batch
    frozen_for_good = spec.mode is Mode.LORA and not spec.encoder_rank
    for name, there in work.there.items():
        cost, trained = costs[name], work.steps.get(name, 0)
        live = 0 if frozen_for_good else trained
        step = cost.fuse * there * looks + cost.backward * trained * passes + cost.encode * live * looks
        flops += step * local.batch
        still = (there - live) * local.batch * looks
        if still and local.cache:
            once = 0 if resident and frozen_for_good else min(windows, total * local.batch)
            still = min(once, still)
        flops += cost.encode * still
    return flops


def spent(
    spec: ModelSpec,
    costs: Mapping[str, BlockCost],
    device: LabDevice,
    work: Work,
    local: Local,
    downloads: Collection[str],
    *,
    resident: bool = False,
    compute_part: float = 1.0,
    sent_part: float = 1.0,
) -> Spent:
    """What the device's round took.

    downloads   blocks that it had to fetch
    compute_part, sent_part   of methods whose devices hold a part of the model
    """
    flops = compute_part * work_flops(spec, costs, work, local, len(device.windows), resident=resident)
    up = int(sum(costs[block].bytes for block in work.steps) * WIRE[local.wire] / BYTES_PER_VALUE * sent_part)
    down = int(sum(costs[block].bytes for block in downloads) * sent_part)
    return Spent.of(device, flops, up, down)
