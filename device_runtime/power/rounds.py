"""Joules of a round from a running meter, in the form the trainer asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from device_runtime.joules import Spent
from device_runtime.power.energy import Allowance, Mark, Meter, attributed


class MeteredJoules:
    """Counts one training at a time on `meter`: active joules, those above idle. Meets device_runtime.joules.Joules."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._mark: Mark = meter.mark()

    def allowance(self, joules: float) -> Callable[[], bool]:
        """Begin to count; True at the step border at which one more step would exceed `joules` (0: no limit)."""
        self._mark = self._meter.mark()
        return Allowance(self._meter, joules) if joules > 0 else _no_limit

    def spent(self, seconds: Mapping[str, float]) -> Spent:
        """Measured in total (estimated where the source says so), attributed to blocks by their seconds."""
        energy = self._meter.since(self._mark)
        return Spent(energy.active, energy.source, attributed(energy, seconds))


def _no_limit() -> bool:
    return False
