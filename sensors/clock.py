"""Whether samples are of now, by this device's clock: sensors are joined to each other and to labels by time alone."""

from __future__ import annotations

from sensors.stream import LAG_S, Samples

AHEAD_S = 1.0  # nothing is sensed in the future; stamps made from arrival times jitter by less


def astray(samples: Samples, now: float) -> str:
    """What is wrong with the times of a piece that has just arrived, and what to do; empty where nothing is.

    Late by up to LAG_S is none: so long the ring waits for a sensor that sends seldom.
    """
    ahead = samples.time + (len(samples) - 1) / samples.rate_hz - now
    if ahead > AHEAD_S:
        return f"samples are {ahead:,.0f} s ahead of this device's clock: set the clock of what sends them"
    if ahead < -LAG_S:
        todo = "set the clock of what sends them, or let it send sooner"
        return f"samples are {-ahead:,.0f} s behind this device's clock: {todo}"
    return ""
