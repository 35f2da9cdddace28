"""Which source of power this machine has: jtop, the board's own monitors, RAPL, and an estimate as the last resort."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from device_runtime.power.condition import SYS
from device_runtime.power.estimate import PROC, EstimateMonitor
from device_runtime.power.jtop_monitor import JtopMonitor
from device_runtime.power.monitor import ESTIMATE, Found, Monitor, PowerError
from device_runtime.power.rapl import RaplMonitor
from device_runtime.power.sysfs import SysfsMonitor

ORDER = ("jtop", "ina3221", "rapl", ESTIMATE)


def find(
    sources: Sequence[str] = ORDER,
    *,
    root: Path = SYS,
    proc: Path = PROC,
    jtop_python: Sequence[str] = (sys.executable,),
) -> Found:
    """Open the first of `sources` that works here; the result says why the ones before it did not.

    root, proc    where /sys and /proc are; jtop_python  a Python that has jetson-stats
    Raises PowerError if none works, ValueError for a source that does not exist.
    """
    known: dict[str, Callable[[], Monitor]] = {
        "jtop": lambda: JtopMonitor(python=jtop_python),
        "ina3221": lambda: SysfsMonitor(root),
        "ina238": lambda: SysfsMonitor(root),
        "rapl": lambda: RaplMonitor(root),
        ESTIMATE: lambda: EstimateMonitor(root, proc),
    }
    unknown = [source for source in sources if source not in known]
    if unknown:
        raise ValueError(f"power source {unknown[0]!r}: use one of {', '.join(known)}")
    return first_open([known[source] for source in sources])


def first_open(candidates: Sequence[Callable[[], Monitor]]) -> Found:
    """Open the candidates in turn and keep the first that opens and gives a sample. PowerError names every refusal."""
    refused: list[tuple[str, str]] = []
    for make in candidates:
        monitor = make()
        try:
            monitor.open()
            monitor.read()
        except PowerError as error:
            monitor.close()
            refused.append((error.source, error.reason))
            continue
        return Found(monitor, tuple(refused))
    raise PowerError("any source", "; ".join(f"{source}: {reason}" for source, reason in refused) or "none was tried")
