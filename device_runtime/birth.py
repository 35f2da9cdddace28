"""The birth certificate: what the fleet is told of a device, and which changes are worth telling again."""

from __future__ import annotations

import math
from collections.abc import Mapping

from device_runtime.events import Power, Profiled, SensorsChanged
from protocol.messages import BlockSpeed, Status

NEWS = 0.2  # relative change of a block's seconds or of the watts that is worth a birth
GROWTH = 0.1  # relative change of the number of windows that is
REST = 5.0  # seconds without a further change after which any number of windows is told
PAUSE = 2.0  # seconds between births that only bring other numbers


class Birth:
    """`status` is what would be told now; `due` when it should be told again, inf where nothing has changed."""

    def __init__(self, status: Status) -> None:
        self.status = status
        self._due = self._rested = math.inf
        self._told_at, self._windows = -math.inf, 0
        self._speed: Mapping[str, BlockSpeed] = status.speed

    @property
    def due(self) -> float:
        return min(self._due, self._rested)

    def tell(self, now: float) -> Status:
        """The certificate, told now."""
        self._told_at, self._due, self._rested = now, math.inf, math.inf
        self._windows, self._speed = self.status.windows, self.status.speed
        return self.status

    def sensed(self, event: SensorsChanged, now: float) -> bool:
        """Take in what the sensors deliver; True if a modality came or went, which cannot wait."""
        before = self.status.modalities
        new = {"modalities": dict(event.modalities), "windows": event.windows, "scale": dict(event.scale)}
        self.status = self.status.model_copy(update=new)
        if abs(event.windows - self._windows) > GROWTH * self._windows:
            self._soon(now)
        # Sensors that go on are told of by tenths. A recording that has ended is told of as it is: the fleet's
        # normalisation and the shares of its mean are made of these numbers.
        self._rested = now + REST if event.windows != self._windows else math.inf
        return before != self.status.modalities

    def measured(self, event: Profiled, now: float) -> None:
        """Take in the seconds per window and block, and where they were measured."""
        speed = event.speed
        self.status = self.status.model_copy(update={"speed": dict(speed), "accelerator": event.accelerator})
        if _moved(self._speed, speed):
            self._due = now

    def powered(self, event: Power, now: float) -> None:
        """Take in what is known of the power source."""
        old = self.status
        new = {"power_source": event.source, "watts": event.watts, "idle_watts": event.idle_watts}
        self.status = old.model_copy(update=new)
        pairs = ((old.watts, event.watts), (old.idle_watts, event.idle_watts))
        if event.source != old.power_source or any(abs(b - a) > NEWS * a for a, b in pairs):
            self._soon(now)

    def released(self, version: int, now: float) -> None:
        """Take in by which registered version it predicts."""
        if version != self.status.release:
            self.status = self.status.model_copy(update={"release": version})
            self._due = now

    def _soon(self, now: float) -> None:
        self._due = min(self._due, max(now, self._told_at + PAUSE))


def _moved(told: Mapping[str, BlockSpeed], now: Mapping[str, BlockSpeed]) -> bool:
    """Whether some block has become so much faster or slower that the coordinator should know."""
    for block, speed in now.items():
        if block not in told:
            return True
        pairs = ((told[block].forward, speed.forward), (told[block].backward, speed.backward))
        if any(abs(new - old) > NEWS * old for old, new in pairs):
            return True
    return False
