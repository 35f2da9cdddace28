"""The running summary that operators see: plain values, made from the core and the history."""

from __future__ import annotations

from typing import Any

from coordinator.history import History
from coordinator.rounds import Phase, Rounds


def summary(core: Rounds, history: History, now: float) -> dict[str, Any]:
    """Everything the display, `fleet status` and the dashboard show; seconds on the coordinator's wall clock."""
    last = history.last
    return {
        "strategy": core.strategy.name,
        "rounds": core.pace.rounds,
        "paused": core.paused,
        "elapsed": now,
        "began": core.began,
        "deadline": 0.0 if core.phase is not Phase.TRAINING else core.deadline - now,
        "versions": dict(core.versions),
        "cohorts": {m: len(owners) for m, owners in core.registry.cohorts().items()},
        "trainers": dict(last.trainers) if last else {},
        "divergence": core.strategy.divergence() or (dict(last.divergence) if last else {}),
        "loss": last.loss if last else None,
        "last_seconds": last.ended - last.began if last else None,
        "scores": dict(history.scores),
        "scored_round": history.scored_round,
        "joules": history.joules,
        "power": list(last.power) if last else [],
        "trail": list(history.trail),
        "scored": list(history.scored),
        "devices": {id: _device(core, id) for id in sorted(core.registry.devices)},
    }


def _device(core: Rounds, id: str) -> dict[str, Any]:
    device = core.registry.devices[id]
    status, assignment = device.status, core.assignments.get(id) or core.late.assignments.get(id)
    head = core.stored.get(id) or core.done.get(id)
    held = core.registry.quarantined.get(id)
    return {
        "state": _state(core, id),
        "why": held.reason if held else device.fault or core.declined.get(id) or status.reason,
        "tier": status.tier,
        "modalities": list(core.registry.owned(id)),
        "windows": status.windows,
        "runtime": status.runtime,
        "release": status.release,
        "power": status.power_source,
        "watts": status.watts,
        "rate": status.rate,
        "since": device.since,
        "round": head.round if head else 0,
        "steps": dict(assignment.steps) if assignment else {},
        "predicted": assignment.predicted_seconds if assignment else 0.0,
        "seconds": head.seconds if head else 0.0,
        "joules": head.joules if head else 0.0,
        "bytes": head.size if head else 0,
        "loss": head.loss if head else 0.0,
    }


def _state(core: Rounds, id: str) -> str:
    device = core.registry.devices[id]
    if not device.status.online:
        return "offline"
    if id in core.registry.quarantined:
        return "quarantined"
    if device.fault or id in core.declined:
        return "declined"
    if id in core.stored:
        return "done"
    if id in core.assignments or id in core.late.busy:
        return "training"
    return "ready" if device.ready else "idle"
