"""How slow this machine is now, for limits in seconds that a promise states for an ordinary one."""

from __future__ import annotations

import time

ORDINARY_S = 0.05  # a million turns of a bare loop; 0.08 was seen on a machine that was slow in everything


def slowness(tries: int = 3) -> float:
    """At least 1; 3 where plain arithmetic takes three times as long as it may on an ordinary machine."""
    worst = 0.0
    for _ in range(tries):
        began = time.perf_counter()
        for _ in range(1_000_000):
            pass
        worst = max(worst, time.perf_counter() - began)
    return max(1.0, worst / ORDINARY_S)
