"""What else the board says about its state: temperatures, power mode, battery, and the limits set on them."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
_MODE = re.compile(r"NV Power Mode:\s*(\S+)")


def temperatures(root: Path = SYS) -> dict[str, float]:
    """Zone -> degrees Celsius of every thermal zone that can be read; zones that are off are left out."""
    found: dict[str, float] = {}
    for zone in sorted((root / "class/thermal").glob("thermal_zone*")):
        try:
            name = (zone / "type").read_text().strip()
            celsius = int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
        if "PMIC" not in name and celsius > -40:  # the PMIC zone is a constant 100; -256 stands for offline
            found[name if name not in found else f"{name}.{zone.name[len('thermal_zone') :]}"] = celsius
    return found


def nvpmodel_mode(command: tuple[str, ...] = ("nvpmodel", "-q"), timeout: float = 4.0) -> str:
    """The current mode's name, or "" without nvpmodel. Its numbers differ by board, so only the name is taken."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _MODE.search(done.stdout)
    return found.group(1) if found else ""


@dataclass(frozen=True)
class Battery:
    """Charge in percent, and whether it is being drained."""

    percent: float
    discharging: bool


def battery(root: Path = SYS) -> Battery | None:
    """The first battery that powers the system and says its charge; None on a board without one."""
    for supply in sorted((root / "class/power_supply").glob("*")):
        try:
            if (supply / "type").read_text().strip() != "Battery":
                continue
            scope = supply / "scope"
            if scope.exists() and scope.read_text().strip() == "Device":  # of a wireless mouse, a headset
                continue
            percent = float((supply / "capacity").read_text())
            status = supply / "status"
            return Battery(percent, not status.exists() or status.read_text().strip() == "Discharging")
        except (OSError, ValueError):
            continue
    return None


@dataclass(frozen=True)
class Limits:
    """Beyond these an assignment is declined: degrees of the hottest zone, percent of a battery being drained."""

    max_celsius: float = 85.0
    min_battery: float = 20.0

    def refusal(self, zones: dict[str, float], charge: Battery | None) -> str:
        """Why no work should be taken on now; "" if nothing speaks against it."""
        if zones:
            hottest = max(zones, key=lambda zone: zones[zone])
            if zones[hottest] > self.max_celsius:
                return f"too hot: {hottest} {zones[hottest]:.1f} C, limit {self.max_celsius:.0f} C"
        if charge is not None and charge.discharging and charge.percent < self.min_battery:
            return f"battery low: {charge.percent:.0f} %, limit {self.min_battery:.0f} %"
        return ""


class Surroundings:
    """Temperatures and mode, read at most every `every` seconds: on a board each reading is a call to its firmware."""

    def __init__(self, root: Path = SYS, *, every: float = 2.0, mode_every: float = 60.0) -> None:
        self._root, self._every, self._mode_every = root, every, mode_every
        self._zones: dict[str, float] = {}
        self._mode = ""
        self._zones_due = self._mode_due = float("-inf")

    def read(self) -> tuple[dict[str, float], str]:
        """(zone -> degrees Celsius, mode)"""
        now = time.monotonic()
        if now >= self._zones_due:
            self._zones, self._zones_due = temperatures(self._root), now + self._every
        if now >= self._mode_due:
            self._mode, self._mode_due = nvpmodel_mode(), now + self._mode_every
        return self._zones, self._mode
