"""Where a fleet stands, in words: the same on the terminal and on the live page."""

from __future__ import annotations

from typing import Any


def standing(s: dict[str, Any]) -> str:
    """`round 3 of 20 · training`, or that all rounds are done."""
    if s.get("rounds") and s["round"] > s["rounds"]:
        return f"all {s['rounds']} rounds are done"
    of = f" of {s['rounds']}" if s.get("rounds") else ""
    phase = s["phase"]
    if s.get("paused"):
        phase = "paused" if phase == "gathering" else f"{phase}, will pause"
    return f"round {s['round']}{of} · {phase}"
