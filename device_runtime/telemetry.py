"""What a device says about itself between rounds."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from device_runtime import memory

if TYPE_CHECKING:
    from device_runtime.runtime import Runtime


def values(runtime: Runtime) -> dict[str, Any]:
    """Plain values: memory, CPU, sensors, windows, outbox, bytes, refusals, how well the last round was predicted."""
    found: dict[str, Any] = {
        "memory_bytes": memory.resident(),
        "cpu_seconds": time.process_time(),
        "windows": runtime.agent.status.windows,
        "outbox_updates": len(runtime.outbox),
        "outbox_bytes": runtime.outbox.size,
        "bytes_up": runtime.hands.bytes_up,
        "bytes_down": runtime.bytes_down,
        "counts": dict(runtime.agent.counts),
    }
    if runtime.unrecognised:
        found["windows_unrecognised"] = runtime.unrecognised
    found |= power(runtime) | runtime.sensors
    if runtime.predictor:
        found |= runtime.predictor.values()
    if runtime.outbox.problem:
        found["outbox_problem"] = runtime.outbox.problem
    worker = runtime.worker
    if worker and worker.busy.wall:
        found["cpu_share"], found["cpu_quota"] = worker.busy.share, runtime.config.quota
    if worker:
        found["accelerator"] = worker.accelerator
    if worker and worker.last:
        found["predicted_seconds"], found["measured_seconds"] = worker.last.predicted, worker.last.measured
        found["prediction_error"] = worker.profile.median_error
    return found


def identity(runtime: Runtime) -> dict[str, Any]:
    """What somebody at the machine itself wants to know besides."""
    agent, status = runtime.agent, runtime.agent.status
    return {
        "device": runtime.config.id,
        "boot": runtime.boot,
        "pid": os.getpid(),
        "seconds": time.monotonic() - runtime.began,
        "connected": agent.connected,
        "trouble": runtime.trouble,
        "coordinator": bool(agent.coordinator and agent.coordinator.online),
        "modalities": sorted(status.modalities),
        "owned": sorted(runtime.owned),
        "can_train": status.can_train,
    }


def power(runtime: Runtime) -> dict[str, Any]:
    """Watts with their source, and what else the board says about its state."""
    found: dict[str, Any] = {"power_source": runtime.joules.source}
    sample = runtime.meter.latest() if runtime.meter else None
    if sample:
        found |= {"watts": sample.watts, "rails": dict(sample.rails), "rails_summed": list(sample.summed)}
        found["measured"] = sample.measured
    condition = runtime.condition
    if condition.celsius:
        found["celsius"] = dict(condition.celsius)
    if condition.mode:
        found["power_mode"] = condition.mode
    if condition.battery:
        found["battery_percent"] = condition.battery.percent
    return found
