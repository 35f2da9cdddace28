"""Evaluation beside the rounds: a thread that scores committed blocks while devices train on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.partition import Vector

log = logging.getLogger("relief.coordinator")

WAITING = 4  # snapshots that may wait for their score


@dataclass(frozen=True)
class Snapshot:
    """The model after `round`, committed `at` seconds after the run began."""

    round: int
    at: float
    blocks: Mapping[str, Vector]
    scales: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    round: int
    at: float
    scores: dict[str, float]


class Scorer:
    """Calls `evaluate(snapshot)` in order and hands every result to `sink`, which must not block.

    Where rounds are quicker than evaluation the oldest that wait are left out: a snapshot is a whole model, and they
    must not pile up. The newest is never left out.
    """

    def __init__(self, evaluate: Callable[[Snapshot], dict[str, float]], sink: Callable[[Scored], None]) -> None:
        self._evaluate, self._sink = evaluate, sink
        self._waiting: deque[Snapshot] = deque(maxlen=WAITING)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, snapshot: Snapshot) -> None:
        with self._changed:
            self._waiting.append(snapshot)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Score what still waits, for at most `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _next(self) -> Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting.popleft() if self._waiting else None

    def _run(self) -> None:
        while (snapshot := self._next()) is not None:
            try:
                self._sink(Scored(snapshot.round, snapshot.at, self._evaluate(snapshot)))
            except Exception:  # a score that fails must not end the scores to come
                log.exception("evaluation of round %d failed", snapshot.round)
