"""The only place that imports jtop: a process of its own, started by path, that prints one JSON line a reading.

Importing jtop changes how the importing process starts children, connecting to a hung service blocks for ever, and a
client whose service stopped hangs at exit. Here none of that matters: whoever started us kills us. Standing alone, it
runs under any Python that has jetson-stats, which need not be the one that trains.

Lines: {"error": text} and the end, or {"t", "uptime", "rails", "temperatures", "mode"} in seconds, watts, Celsius.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_PHYSICAL = ("INA3221", "INA238")  # jtop also lists power supplies, whose power is on the rails already


def main() -> None:
    interval = float(sys.argv[1])
    # Our parent holds the other end of stdin; when it is gone, so are we.
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        from jtop import jtop  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        _say({"error": "jetson-stats is not installed; run: pip install --only-binary :all: 'relief-edge[jetson]'"})
        os._exit(2)
    try:
        client = jtop(interval=interval)
        client.start()
        while client.ok():
            _say(reading(client.power, client.temperature, client.nvpmodel, client.uptime.total_seconds()))
        _say({"error": "the jtop service stopped answering"})
    except BaseException as error:  # jtop lets through whatever its connection raises
        _say({"error": " ".join(str(error).split()) or type(error).__name__})
    os._exit(1)  # a plain exit would wait for jtop's threads, which may wait for ever


def reading(power: dict[str, Any], zones: dict[str, Any], nvpmodel: Any, uptime: float) -> dict[str, Any]:
    """What jtop says, in our units and with its `tot` taken apart again: it adds rails that lie inside others."""
    rails = {name: rail for name, rail in power.get("rail", {}).items() if rail.get("type", "INA3221") in _PHYSICAL}
    total = power.get("tot", {})
    if "name" in total:
        rails[total["name"]] = total
    return {
        # The service stamps its readings with the uptime; what is left is how long they took to reach us.
        "t": time.monotonic() - max(0.0, _uptime() - uptime),
        "uptime": uptime,
        "rails": {name: rail["power"] / 1000 for name, rail in rails.items() if "power" in rail},
        "temperatures": {name: zone["temp"] for name, zone in zones.items() if zone.get("online", True)},
        "mode": str(nvpmodel.name) if nvpmodel is not None else "",
    }


def _uptime() -> float:
    with Path("/proc/uptime").open() as file:
        return float(file.readline().split()[0])


def _say(values: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(0)


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
