"""A Jetson that is not there: its /sys tree, and a private mount namespace in which the real jtop runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

NAMESPACES = Path("/proc/self/ns/mnt").exists()
_ROOT = hasattr(os, "getuid") and os.getuid() == 0


@dataclass(frozen=True)
class Chip:
    """A power monitor: rail label -> (mV, mA), in the order of its channels."""

    address: str
    rails: dict[str, tuple[int, int]]
    kind: str = "ina3221"


# Rails as these boards name them; the values are round figures that tell every rail from every other.
BOARDS: dict[str, tuple[Chip, ...]] = {
    "AGX Orin": (
        Chip("1-0040", {"VDD_GPU_SOC": (20000, 400), "VDD_CPU_CV": (20000, 200), "VIN_SYS_5V0": (5000, 800)}),
        Chip("1-0041", {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 100), "NC ": (0, 0)}),
    ),
    "Orin Nano": (Chip("1-0040", {"VDD_IN": (5000, 1000), "VDD_CPU_GPU_CV": (5000, 300), "VDD_SOC": (5000, 200)}),),
    "AGX Xavier": (
        Chip("1-0040", {"GPU": (19000, 100), "CPU": (19000, 50), "SOC": (19000, 80)}),
        Chip("1-0041", {"CV": (19000, 10), "VDDRQ": (19000, 20), "SYS5V": (5000, 500)}),
    ),
    "AGX Thor": (
        Chip("1-0040", {"VDD_GPU": (12000, 1000), "VDD_CPU_SOC_MSS": (12000, 500)}),
        Chip("1-0044", {"VIN": (19000, 2000)}, "ina238"),
    ),
}
TOTALS = {"AGX Orin": 16.0, "Orin Nano": 5.0, "AGX Xavier": 7.44, "AGX Thor": 38.0}  # watts, by hand from the above

_NVPMODEL = """#!/bin/sh
case "$1" in
  -q) printf 'NV Power Mode: MODE_30W\\n2\\n' ;;
  -p) printf 'POWER_MODEL: ID=0 NAME=MAXN\\nPOWER_MODEL: ID=1 NAME=MODE_15W\\nPOWER_MODEL: ID=2 NAME=MODE_30W\\n'
      printf 'PM_CONFIG: DEFAULT=MODE_30W(2)\\n' ;;
esac
"""

# Its own root with the board's /sys, an empty /run, a group jtop (id 0, the one id that every user namespace has).
_ENTER = """
set -e
new=$1; sys=$2; group=$3
mount -t tmpfs tmpfs "$new"
for entry in /*; do
  name=${entry#/}
  case $name in
    run|sys|fake_sys) ;;
    *) if [ -L "$entry" ]; then cp -a "$entry" "$new/$name"
       elif [ -d "$entry" ]; then mkdir "$new/$name"; mount --rbind "$entry" "$new/$name"; fi ;;
  esac
done
mkdir "$new/run" "$new/sys" "$new/fake_sys"
mount --bind "$sys" "$new/sys"
mount --bind "$sys" "$new/fake_sys"
mount --bind "$group" "$new/etc/group"
exec chroot "$new" sh -c 'echo ready; exec cat'
"""


def write_board(root: Path, chips: tuple[Chip, ...]) -> None:
    """The part of /sys that power, temperature and board recognition read, below `root`."""
    for n, chip in enumerate(chips):
        device = root / "bus/i2c/devices" / chip.address
        hwmon = device / f"hwmon/hwmon{n + 3}"
        hwmon.mkdir(parents=True)
        (device / "name").write_text(f"{chip.kind}\n")
        driver = root / f"bus/i2c/drivers/{chip.kind}"
        driver.mkdir(parents=True, exist_ok=True)
        (driver / chip.address).symlink_to(device)
        for channel, (label, (volts, amps)) in enumerate(chip.rails.items(), start=1):
            (hwmon / f"in{channel}_input").write_text(f"{volts}\n")
            (hwmon / f"curr{channel}_input").write_text(f"{amps}\n")
            if chip.kind == "ina238":
                (hwmon / "power1_input").write_text(f"{volts * amps}\n")
            else:
                (hwmon / f"in{channel}_label").write_text(f"{label.strip()}\n")
        if chip.kind == "ina3221":
            (hwmon / "in7_label").write_text("sum of shunt voltages\n")
            (hwmon / "in7_input").write_text("40\n")
    for n, (name, milli) in enumerate({"cpu-thermal": 48500, "gpu-thermal": 47000, "cv0-thermal": -256000}.items()):
        zone = root / f"devices/virtual/thermal/thermal_zone{n}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{name}\n")
        (zone / "temp").write_text(f"{milli}\n")
        (root / "class/thermal").mkdir(parents=True, exist_ok=True)
        (root / f"class/thermal/thermal_zone{n}").symlink_to(zone)
    for folder in ("class/hwmon", "class/devfreq", "class/power_supply", "devices/system/cpu/cpu0", "kernel"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    identity = root / "devices/virtual/dmi/id"
    identity.mkdir(parents=True)
    (identity / "board_name").write_text("emulated\n")
    (root / "stat").write_text("cpu  10 0 10 1000 0 0 0 0 0 0\ncpu0 10 0 10 1000 0 0 0 0 0 0\n")


class Namespace:
    """A mount namespace with this tree as its /sys. `prefix` runs a command inside."""

    def __init__(self, folder: Path, sys_tree: Path) -> None:
        self.sys = sys_tree
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "nvpmodel").write_text(_NVPMODEL)
        (self.bin / "nvpmodel").chmod(0o755)
        (folder / "root").mkdir()
        group = folder / "group"
        group.write_text(Path("/etc/group").read_text() + "jtop:x:0:\n")
        become = () if _ROOT else ("--map-root-user",)
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--mount",
                *become,
                "sh",
                "-c",
                _ENTER,
                "enter",
                str(folder / "root"),
                str(self.sys),
                str(group),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            reason = self._holder.stderr.read().strip()
            self.close()
            pytest.skip(f"mount namespaces are not allowed here: {reason}")
        user = () if _ROOT else ("--user", "--preserve-credentials")
        self.prefix = ("nsenter", f"--target={self._holder.pid}", "--mount", "--root", *user, "--")
        self._services: list[subprocess.Popen[bytes]] = []

    def python(self) -> tuple[str, ...]:
        """The command prefix of this Python inside the namespace."""
        return (*self.prefix, sys.executable)

    def start_service(self, path: Path | None = None) -> subprocess.Popen[bytes]:
        """The real jtop service, from `path` if given, up and listening."""
        environment = {**os.environ, "JTOP_TESTING": "true", "JTOP_SERVICE": "True", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PATH"] = f"{self.bin}:{environment['PATH']}"
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        # It keeps its settings below the interpreter's prefix, which here is the machine's own: point it elsewhere.
        start = (
            "import sys; sys.base_prefix = '/run'; sys.argv[1:] = ['--force']; from jtop.__main__ import main; main()"
        )
        log = self.sys.with_name("service.log")
        with log.open("wb") as output:
            service = subprocess.Popen(
                [*self.python(), "-c", start],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._services.append(service)
        socket = Path(f"/proc/{self._holder.pid}/root/run/jtop.sock")
        wait_for(lambda: socket.exists() and len(parts_of(service)) == 2, "the jtop service to listen", log=log)
        return service

    def close(self) -> None:
        """End everything that runs inside."""
        for service in getattr(self, "_services", []):
            kill_all(service)
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if pipe is not None:
                pipe.close()
        self._holder.kill()
        self._holder.wait()


def parts_of(service: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The service's two processes: first the one that clients talk to, second the one that reads the board."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return sorted(psutil.Process(service.pid).children(), key=lambda part: part.pid)
    return []


def kill_all(service: subprocess.Popen[bytes]) -> None:
    """kill -9 of a service with its processes."""
    parts = parts_of(service)
    for part in parts:
        with contextlib.suppress(psutil.NoSuchProcess):
            part.send_signal(signal.SIGKILL)
    service.kill()
    service.wait()
    psutil.wait_procs(parts, timeout=5)


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 15.0, log: Path | None = None) -> None:
    """Poll `condition` until it holds; the test fails, naming `what`, if it does not in time."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout:g} s for {what}" + (f"\n{log.read_text()}" if log else ""))
        time.sleep(0.05)


@contextlib.contextmanager
def entered(folder: Path, sys_tree: Path) -> Iterator[Namespace]:
    """A namespace over a tree, gone again at the end. Skips where it cannot be made."""
    if not NAMESPACES:
        pytest.skip("mount namespaces exist on Linux only")
    namespace = Namespace(folder, sys_tree)
    try:
        yield namespace
    finally:
        namespace.close()


@contextlib.contextmanager
def emulated(folder: Path, board: str) -> Iterator[Namespace]:
    """The namespace of a board."""
    write_board(folder / "sys", BOARDS[board])
    with entered(folder, folder / "sys") as namespace:
        yield namespace
