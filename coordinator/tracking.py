"""Rounds on their way to an experiment tracker: through a queue to a thread of its own, so that no round waits.

A server that is slow or away costs what does not fit the queue, and the coordinator says how much that was.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from coordinator.trackers import Tracker

log = logging.getLogger("relief.coordinator")

WAITING = 500  # rounds and evaluations that wait for a slow tracker; those that come after are dropped
PATIENCE = 10.0  # seconds at the end for what still waits
PLAIN = ("loss", "joules", "bytes_up", "bytes_down", "updates", "partial")
Numbers = Mapping[str, float]


class TrackerBehind(Exception):
    """A tracker fails, or is too slow; the text says which and what is lost."""


class Tracking:
    """Hands every round and every evaluation of the summaries to a tracker, once; `close` at the end."""

    def __init__(self, tracker: Tracker, waiting: int = WAITING) -> None:
        self._tracker, self._name = tracker, type(tracker).__name__
        self._round = self._scored = self.dropped = 0
        self._failure = ""  # why the latest could not be written; empty once one could
        self._late = False  # something was dropped because the queue was full, and it has not been empty since
        self._queue: queue.Queue[tuple[Numbers, int] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name=f"tracking-{self._name}", daemon=True)
        self._thread.start()

    def take(self, round: int, fields: dict[str, Any]) -> None:
        """A summary, as it was published. Never waits; TrackerBehind as long as not all of it arrives there."""
        for one in fields.get("trail", []):
            if one["round"] > self._round:
                self._round = one["round"]
                self._hand(_numbers(one), one["round"])
        for one in fields.get("scored", []):
            if one["round"] > self._scored:
                self._scored = one["round"]
                self._hand({f"f1/{k}": float(v) for k, v in one.items() if k not in ("round", "at")}, one["round"])
        if self._failure:
            raise TrackerBehind(f"{self._name} took not all of it: {self._failure}")
        if self._late:
            raise TrackerBehind(f"{self._name} is too slow; rounds and evaluations left out so far: {self.dropped}")

    def close(self, patience: float = PATIENCE) -> None:
        """Write what waits and end the tracker's run; what `patience` seconds are too short for is given up."""
        until = time.monotonic() + patience
        try:
            self._queue.put(None, timeout=patience)
        except queue.Full:
            pass
        else:
            self._thread.join(max(0.0, until - time.monotonic()))
        missing = self.dropped + self._queue.qsize()
        if self._thread.is_alive():
            log.warning("%s did not answer for %.0f s at the end: given up", self._name, patience)
        if missing:
            log.warning("rounds and evaluations that %s lacks: %d; metrics.jsonl has them", self._name, missing)

    def _hand(self, numbers: Numbers, step: int) -> None:
        try:
            self._queue.put_nowait((numbers, step))
        except queue.Full:
            self.dropped += 1
            self._late = True

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while (one := self._queue.get()) is not None:
            try:
                self._tracker.write(*one)
                self._failure = ""
            except Exception as error:  # whatever a tracker's library raises
                self.dropped += 1
                self._failure = f"{type(error).__name__}: {error}"[:300]
            self._late = self._late and not self._queue.empty()
        try:
            self._tracker.close()
        except Exception:
            log.exception("%s: its run could not be ended", self._name)


def _numbers(one: dict[str, Any]) -> dict[str, float]:
    found = {f"round/{name}": float(one[name]) for name in PLAIN}
    found["round/seconds"] = one["ended"] - one["began"]
    return found | {f"divergence/{block}": float(value) for block, value in one["divergence"].items()}
