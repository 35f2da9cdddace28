"""What metering costs: CPU of our thread at 10 Hz over sysfs, and of jtop's real service and our child, on an emulated
AGX Orin.

`python -m tests.bench_power` prints the rows; `bench()` is what `make bench` collects.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from device_runtime.power import JtopMonitor, Meter, Sample, SysfsMonitor
from tests.bench import cells
from tests.emulated_board import BOARDS, Namespace, emulated, parts_of, write_board

SECONDS = 6.0
PROMISED = 2.0  # percent of a core


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, rival (name, value), promise, ok."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [_sysfs(Path(folder))]
    try:
        with tempfile.TemporaryDirectory() as folder, emulated(Path(folder), "AGX Orin") as namespace:
            rows.append(_jtop(namespace, 0.5))
    except pytest.skip.Exception as reason:
        rows.append({"name": "jtop and our child", "skipped": str(reason)})
    return rows


def _sysfs(folder: Path) -> dict[str, Any]:
    write_board(folder, BOARDS["AGX Orin"])
    monitor = SysfsMonitor(folder)
    monitor.open()
    read, spent = monitor.read, []

    def counted() -> Sample:
        spent.append(time.thread_time())  # of the metering thread
        return read()

    monitor.read = counted  # type: ignore[method-assign]
    meter = Meter(monitor)
    meter.start()
    time.sleep(SECONDS)
    meter.stop()
    share = 100 * (spent[-1] - spent[0]) / (len(spent) - 1) * 10
    return _row("metering at 10 Hz, INA3221 by sysfs", share, "nothing", 0.0, share <= PROMISED)


def _jtop(namespace: Namespace, interval: float) -> dict[str, Any]:
    service = namespace.start_service()
    monitor = JtopMonitor(interval=interval, python=namespace.python())
    monitor.open()
    theirs = [psutil.Process(service.pid), *parts_of(service)]
    ours = psutil.Process(monitor.pid)
    meter = Meter(monitor)
    meter.start()
    before, own, began = sum(map(_cpu, theirs)), _cpu(ours), time.monotonic()
    time.sleep(SECONDS)
    seconds = time.monotonic() - began
    child, rival = 100 * (_cpu(ours) - own) / seconds, 100 * (sum(map(_cpu, theirs)) - before) / seconds
    meter.stop()
    return _row(
        f"our jtop child, a reading every {interval:g} s", child, "jtop's own service", rival, child <= PROMISED
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _row(name: str, value: float, rival: str, rival_value: float, ok: bool) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": "% of a core",
        "rival": {"name": rival, "value": round(rival_value, 2)},
        "promise": f"<= {PROMISED:g}",
        "ok": ok,
    }


if __name__ == "__main__":
    for row in bench():
        print(*cells(row), sep="  ")
