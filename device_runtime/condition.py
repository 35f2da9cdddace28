"""Whether this device should take work on now: temperature and battery against the configured limits."""

from __future__ import annotations

from pathlib import Path

from device_runtime.power import Battery, Limits, battery
from device_runtime.power.condition import SYS, Surroundings


class Condition:
    """Read at every `look`; `root` is where /sys is."""

    def __init__(self, limits: Limits, root: Path = SYS) -> None:
        self._limits, self._root, self._surroundings = limits, root, Surroundings(root)
        self.celsius: dict[str, float] = {}
        self.mode = ""
        self.battery: Battery | None = None

    def look(self) -> str:
        """Why no assignment should be taken on now; empty where nothing speaks against it."""
        self.celsius, self.mode = self._surroundings.read()
        self.battery = battery(self._root)
        return self._limits.refusal(self.celsius, self.battery)
