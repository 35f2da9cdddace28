"""How long a method of the demo still takes: by experience until its processes are heard of, then by how far it is."""

from __future__ import annotations

import os
from typing import Any

CPU = 4.0  # seconds of a core until a process of ours has imported torch and speaks
HEARD = 0.6  # of the time until round 1 has passed when the coordinator is first heard of; devices take the rest
NOT_READY = ("idle", "offline")


def starting(title: str, summary: dict[str, Any] | None, processes: int, devices: int, elapsed: float) -> str:
    """The line shown until round 1 begins; `processes` of ours were started `elapsed` seconds ago."""
    known = summary["devices"].values() if summary else ()
    ready = sum(device["state"] not in NOT_READY for device in known)
    if summary is None:
        usual = CPU * processes / (os.cpu_count() or 1)
        left = max(usual - elapsed, elapsed * (1 / HEARD - 1))
        what = "starting coordinator and devices" if processes > 1 else "starting its coordinator"
    else:
        left = elapsed * (1 / (HEARD + (1 - HEARD) * ready / devices) - 1)
        what = f"{ready} of {devices} devices are ready"
    return f"{title}: {what} · about {max(1.0, left):.0f} s left until round 1"


def learning(summary: dict[str, Any], elapsed: float, limit: float) -> str:
    """The line above the fleet, `elapsed` seconds after round 1 began: by rounds, or by the clock's `limit`."""
    done, rounds = summary["round"] - 1, summary["rounds"]
    if not rounds:
        return about(limit - elapsed)
    if done:
        return about(elapsed / done * (rounds - done))
    predicted = max((device["predicted"] or 0.0 for device in summary["devices"].values()), default=0.0)
    return about(rounds * predicted - elapsed) if predicted else ""


def about(seconds: float) -> str:
    """A time left, in words."""
    return f"about {max(0.0, seconds):.0f} s left"
