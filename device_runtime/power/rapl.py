"""Power of an x86 machine from RAPL: energy counters of the processor packages and their memory.

The counters run in microjoules and wrap. Watts are differences over time; the running sum is handed on as well, so
that energy is exact whatever the sampling. A package holds its cores and graphics, so these are not added again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from device_runtime.power.condition import SYS, Surroundings
from device_runtime.power.monitor import PowerError, Sample, now

_SHORTEST = 0.02  # seconds between two readings: the counters move about once a millisecond


@dataclass
class _Counter:
    name: str
    file: Path
    range_uj: int
    last_uj: int = 0


class RaplMonitor:
    """Reads powercap below `root`."""

    source = "rapl"

    def __init__(self, root: Path = SYS) -> None:
        self._root = root
        self._counters: list[_Counter] = []
        self._surroundings = Surroundings(root)
        self._joules = 0.0
        self._last_t = 0.0
        self._last: Sample | None = None

    def open(self) -> None:
        """Find the counters and note where they stand. PowerError without RAPL or without the right to read it."""
        zones = sorted((self._root / "class/powercap").glob("intel-rapl:*"))
        chosen = [zone for zone in zones if _counts(zone)]
        if not chosen:
            raise PowerError(self.source, f"no package under {self._root / 'class/powercap'}")
        self._counters = []
        for zone in chosen:
            file = zone / "energy_uj"
            try:
                counter = _Counter(_name(zone), file, int((zone / "max_energy_range_uj").read_text()))
                counter.last_uj = int(file.read_text())
            except PermissionError:
                raise PowerError(self.source, f"{file} is for root only; run: sudo chmod a+r {file}") from None
            except (OSError, ValueError) as error:
                raise PowerError(self.source, f"{file}: {error}") from None
            self._counters.append(counter)
        self._joules, self._last_t, self._last = 0.0, now(), None

    def read(self) -> Sample:
        """Mean watts since the reading before, at least 20 ms ago (the first call waits for that long)."""
        t = now()
        if t - self._last_t < _SHORTEST:
            if self._last is not None:
                return self._last
            time.sleep(_SHORTEST)
            t = now()
        seconds, watts = t - self._last_t, {}
        for counter in self._counters:
            try:
                value = int(counter.file.read_text())
            except (OSError, ValueError) as error:
                raise PowerError(self.source, f"{counter.file}: {error}") from None
            watts[counter.name] = wrapped(counter.last_uj, value, counter.range_uj) * 1e-6 / seconds
            counter.last_uj = value
        total = sum(watts.values())
        self._joules += total * seconds
        self._last_t = t
        zones, mode = self._surroundings.read()
        self._last = Sample(t, total, self.source, watts, tuple(watts), zones, mode, self._joules)
        return self._last

    def close(self) -> None:
        self._counters = []


def wrapped(before: int, after: int, range_uj: int) -> int:
    """Microjoules between two readings of a counter that goes from 0 to `range_uj` and starts again."""
    return after - before if after >= before else after - before + range_uj + 1


def _counts(zone: Path) -> bool:
    """Packages, and memory below them; not cores and graphics (inside the package), not psys (holds everything)."""
    try:
        name = (zone / "name").read_text().strip()
    except OSError:
        return False
    return name.startswith("package") or name == "dram"


def _name(zone: Path) -> str:
    name, numbers = (zone / "name").read_text().strip(), zone.name.split(":")[1:]
    return name if name.startswith("package") else f"{name}-{numbers[0]}"
