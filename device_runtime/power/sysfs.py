"""Power from the board's own monitors: INA3221 (rails) and INA238 (input) as the kernel shows them under /sys.

JetPack 5 and newer: hwmon, in millivolts, milliamperes and (INA238) microwatts. JetPack 4: ina3221x, in milliwatts.
Numbers of hwmon devices vary between boots, so devices are found by their name and rails by their label.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from device_runtime.power.condition import SYS, Surroundings
from device_runtime.power.monitor import PowerError, Sample, now
from device_runtime.power.rails import total_rails, total_watts

_SHUNT_SUM = 7  # in7 of an INA3221 is the sum of its shunt voltages, no rail


@dataclass(frozen=True)
class _Rail:
    """Watts = the product of the files' values times `scale`."""

    name: str
    files: tuple[Path, ...]
    scale: float


class SysfsMonitor:
    """Reads INA3221 and INA238 below `root`, which is /sys unless a test or a container says otherwise."""

    def __init__(self, root: Path = SYS) -> None:
        self.source = "ina3221"
        self.board = ""
        self._root = root
        self._rails: list[tuple[_Rail, tuple[int, ...]]] = []
        self._summed: tuple[str, ...] = ()
        self._surroundings = Surroundings(root)

    def open(self) -> None:
        """Find the rails. PowerError if there is no monitor, or none whose files can be read."""
        rails = list(_rails(self._root))
        if not rails:
            raise PowerError(self.source, f"no INA3221 or INA238 under {self._root / 'bus/i2c'}; is this a Jetson?")
        self.board, self._summed = total_rails({rail.name for rail in rails})
        self.source = "ina238" if self._summed == ("VIN",) else "ina3221"
        try:
            for rail in rails:
                # Kept open: a read is then one system call, and a value that is replaced in place stays readable.
                self._rails.append((rail, tuple(os.open(file, os.O_RDONLY | os.O_CLOEXEC) for file in rail.files)))
        except OSError as error:
            self.close()
            raise PowerError(self.source, f"{error.filename}: {error.strerror}") from None

    def read(self) -> Sample:
        """All rails now, one after the other within about a millisecond. PowerError if a rail of the total fails."""
        t = now()
        watts = {}
        for rail, files in self._rails:
            try:
                value = rail.scale
                for file in files:
                    value *= int(os.pread(file, 64, 0))
            except (OSError, ValueError):
                continue  # total_watts says which one if it matters
            watts[rail.name] = value
        zones, mode = self._surroundings.read()
        total = total_watts(self.source, watts, self._summed)
        return Sample(t, total, self.source, watts, self._summed, zones, mode)

    def close(self) -> None:
        for _, files in self._rails:
            for file in files:
                os.close(file)
        self._rails = []


def _rails(root: Path) -> Iterator[_Rail]:
    seen: set[Path] = set()
    for name in _chips(root):
        chip = name.parent.resolve()
        if chip in seen:
            continue  # the same chip below devices/ and drivers/
        seen.add(chip)
        kind = name.read_text().strip().lower()
        for hwmon in sorted((chip / "hwmon").glob("hwmon*")):
            yield from _ina238(hwmon) if "ina238" in kind else _ina3221(hwmon)
        for device in sorted(chip.glob("iio:device*")):
            yield from _ina3221x(device)


def _chips(root: Path) -> list[Path]:
    """The `name` files of all INA3221 and INA238 on the I2C buses."""
    names = [*root.glob("bus/i2c/devices/*/name"), *root.glob("bus/i2c/drivers/ina*/*/name")]
    return sorted(n for n in names if any(kind in n.read_text().lower() for kind in ("ina3221", "ina238")))


def _ina3221(hwmon: Path) -> Iterator[_Rail]:
    for label in sorted(hwmon.glob("in*_label")):
        number, name = label.name[2 : -len("_label")], label.read_text().strip()
        volts, amps = hwmon / f"in{number}_input", hwmon / f"curr{number}_input"
        if name != "NC" and number != str(_SHUNT_SUM) and volts.exists() and amps.exists():
            yield _Rail(name, (volts, amps), 1e-6)


def _ina238(hwmon: Path) -> Iterator[_Rail]:
    power = hwmon / "power1_input"
    if power.exists():
        yield _Rail("VIN", (power,), 1e-6)
    elif (hwmon / "in1_input").exists() and (hwmon / "curr1_input").exists():
        yield _Rail("VIN", (hwmon / "in1_input", hwmon / "curr1_input"), 1e-6)


def _ina3221x(device: Path) -> Iterator[_Rail]:
    for label in sorted(device.glob("rail_name_*")):
        name, power = label.read_text().strip(), device / f"in_power{label.name[len('rail_name_') :]}_input"
        if name != "NC" and power.exists():
            yield _Rail(name, (power,), 1e-3)
