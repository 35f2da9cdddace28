"""Times for samples that come without one: a steady rate, corrected slowly towards the moments of arrival."""

from __future__ import annotations

GAIN = 0.05  # share of the difference that is corrected at each arrival: jitter averages out, drift does not grow
LOST_S = 0.5  # a difference beyond this is no jitter: samples were lost, or the clock was set


class Pace:
    """Stamps runs of samples of one sensor. Times are seconds since the epoch."""

    def __init__(self, rate_hz: float) -> None:
        self._period = 1.0 / rate_hz
        self._next: float | None = None

    def stamp(self, count: int, arrival: float) -> float:
        """Time of the first of `count` samples, the last of which has just arrived."""
        first = arrival - (count - 1) * self._period
        if self._next is not None and abs(first - self._next) <= LOST_S:
            first = self._next + GAIN * (first - self._next)
        self._next = first + count * self._period
        return first
