"""What the page knows of a fleet: plain values, made from the summaries and the telemetry, with a version per device.

A page that shows version v asks for what is newer; so a thousand devices cost it only those that changed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

ROUNDS = 500  # rounds and evaluations kept of a run
SAMPLES = 300  # telemetry messages kept of a device
RUNS = 3  # earlier runs whose scores stay for comparison
LAG = 1.5  # a device lags when it takes this many times what was predicted


@dataclass
class Record:
    """One coordinator's run: an epoch under one strategy. `rounds` and `scores` by round."""

    epoch: int = 0
    strategy: str = ""
    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    scores: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def zero(self) -> float:
        """When its first known round began, on the coordinator's clock."""
        return float(min((r["began"] for r in self.rounds.values()), default=0.0))

    def take(self, rounds: list[dict[str, Any]], scores: list[dict[str, Any]]) -> bool:
        """Add what is new; whether anything was."""
        before = len(self.rounds), len(self.scores)
        self.rounds.update({r["round"]: r for r in rounds})
        self.scores.update({s["round"]: s for s in scores})
        after = len(self.rounds), len(self.scores)
        for kept in (self.rounds, self.scores):
            while len(kept) > ROUNDS:
                del kept[next(iter(kept))]
        return after != before


class Board:
    """The fleet as the page shows it. `version` rises with every change; `drawn` only when a round or score is new."""

    def __init__(self, fleet: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.fleet = fleet
        self.version = self.drawn = 0
        self.summary: dict[str, Any] = {}
        self.heard: float | None = None  # by `clock`, when the last summary came
        self.coordinator: bool | None = None  # online by its own word; None: it has said nothing
        self.connection = "connecting"  # to the broker: "" when it is up, else what is wrong
        self.run = Record()
        self.earlier: deque[Record] = deque(maxlen=RUNS)
        self.rows: dict[str, dict[str, Any]] = {}
        self.lives: dict[str, deque[dict[str, float]]] = {}  # device -> its rounds as far as they were seen here
        self.telemetry: dict[str, deque[dict[str, Any]]] = {}
        self.reports: dict[str, str] = {}  # device -> what it reported last of an order
        self._versions: dict[str, int] = {}
        self._clock = clock

    # -- what arrives --------------------------------------------------------------------------

    def take(self, summary: Mapping[str, Any]) -> None:
        """A summary: its fields with `round`, `epoch` and `phase`."""
        self.version += 1
        self.heard = self._clock()
        if summary["epoch"] != self.run.epoch or summary.get("strategy", "") != self.run.strategy:
            if self.run.rounds:
                self.earlier.append(self.run)
            self.run = Record(summary["epoch"], summary.get("strategy", ""))
            for kept in (self.rows, self.lives, self.telemetry, self.reports, self._versions):
                kept.clear()
            self.drawn += 1
        if self.run.take(summary.get("trail", []), summary.get("scored", [])):
            self.drawn += 1
        self.summary = {**summary}
        listed = summary.get("devices", {})
        if listed:  # one of a very large fleet comes without them; then the last that was known stays
            for id in self.rows.keys() - listed.keys():
                del self.rows[id], self._versions[id]
        for id, device in listed.items():
            self._device(id, device)

    def hear(self, id: str, time_: float, values: Mapping[str, Any]) -> None:
        """A device's telemetry; not kept of devices that the coordinator does not know, lest names pile up."""
        if id not in self.rows:
            return
        self.telemetry.setdefault(id, deque(maxlen=SAMPLES)).append({**values, "time": time_})
        self.version += 1
        if id in self.summary.get("devices", {}):  # a summary of a very large fleet comes without them
            self._device(id, self.summary["devices"][id])

    def reported(self, id: str, text: str) -> None:
        """What a device says of an order."""
        if id in self.rows:
            self.version += 1
            self.reports[id] = text

    def say(self, connection: str | None = None, coordinator: bool | None = None) -> None:
        """The connection to the broker, or the coordinator's own word about itself, has changed."""
        self.version += 1
        self.connection = self.connection if connection is None else connection
        self.coordinator = self.coordinator if coordinator is None else coordinator

    def _device(self, id: str, device: Mapping[str, Any]) -> None:
        last = self.telemetry[id][-1] if self.telemetry.get(id) else {}
        found = row(id, device, last, elapsed=self.elapsed if device["state"] == "training" else 0.0)
        if self.rows.get(id) != found:
            self.rows[id] = found
            self._versions[id] = self.version
        life = self.lives.setdefault(id, deque(maxlen=100))
        if device["round"] and (not life or life[-1]["round"] != device["round"]):
            life.append({k: device[k] for k in ("round", "seconds", "predicted", "joules", "loss", "bytes")})

    # -- what is shown ---------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds that the open round has taken; 0 where none is open."""
        if self.summary.get("phase") != "training":
            return 0.0
        return max(0.0, float(self.summary["elapsed"] - self.summary["began"]))

    def newer(self, version: int) -> list[dict[str, Any]]:
        """Rows of devices that changed after `version`."""
        return [self.rows[id] for id, at in self._versions.items() if at > version]

    def silence(self) -> float:
        """Seconds since the last summary."""
        return 0.0 if self.heard is None else self._clock() - self.heard

    def counts(self) -> dict[str, int]:
        """state -> number of devices."""
        found: dict[str, int] = {}
        for device in self.rows.values():
            found[device["state"]] = found.get(device["state"], 0) + 1
        return found

    def timeline(self, most: int = 20) -> list[dict[str, Any]]:
        """This round's devices, slowest first: what they took or have taken so far, and what was predicted."""
        devices = self.summary.get("devices", {})
        here = self.summary.get("round", 0)
        found = []
        for id, device in devices.items():
            done = device["state"] == "done" or (device["round"] and not self.elapsed)
            if done or device["state"] == "training":
                took = device["seconds"] if done else self.elapsed
                late = bool(device["predicted"]) and took > LAG * device["predicted"]
                found.append({"id": id, "seconds": took, "predicted": device["predicted"], "done": done, "late": late})
        found.sort(key=lambda d: (d["done"], -d["seconds"], d["id"]))
        return found[:most] if here else []

    def typical(self) -> float:
        """Median seconds of the devices that have finished; 0 where none has."""
        seconds = [d["seconds"] for d in self.summary.get("devices", {}).values() if d["seconds"]]
        return median(seconds) if seconds else 0.0


def row(id: str, device: Mapping[str, Any], last: Mapping[str, Any], *, elapsed: float = 0.0) -> dict[str, Any]:
    """A device as a row of the table; `last` is its latest telemetry. Empty where a value is not known."""
    watts, source = last.get("watts"), last.get("power_source", device["power"])
    if watts is None and device["watts"]:
        watts, source = device["watts"], device["power"]
    late = bool(elapsed and device["predicted"] and elapsed > LAG * device["predicted"])
    degrees = last.get("celsius") or {}
    return {
        "id": id,
        "state": "late" if late else device["state"],
        "why": device["why"],
        "tier": device["tier"],
        "modalities": ", ".join(device["modalities"]),
        "windows": device["windows"],
        "round": device["round"] or None,
        "work": work(device) or "—",
        "predicted": _round(device["predicted"], 2),
        "seconds": _round(device["seconds"], 2),
        "watts": _round(watts, 1),
        "source": source,
        "celsius": _round(max(degrees.values(), default=None), 0),
        "kB": _round(device["bytes"] / 1e3, 0),
        "link": "gone" if device["state"] == "offline" else _rate(device["rate"]),
        "version": device["runtime"] or "—",
    }


def work(device: Mapping[str, Any]) -> str:
    """Steps and the blocks that get as many, the device's own first: `24 × chest_acc ecg, 12 × ankle_acc`."""
    own = device["modalities"]
    blocks = sorted(
        (b for b in device["steps"] if b != "shared"), key=lambda b: (b not in own, own.index(b) if b in own else 0, b)
    )
    groups: dict[int, list[str]] = {}
    for block in blocks:
        groups.setdefault(device["steps"][block], []).append(block)
    return ", ".join(f"{steps} × {' '.join(names)}" for steps, names in groups.items())


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e3:.0f} kB/s" if bytes_per_second else "up"


def _round(value: float | None, digits: int) -> float | None:
    return round(float(value), digits) if value else None
