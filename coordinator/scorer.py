"""Evaluation beside the rounds: a thread that scores committed blocks while devices train on."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.partition import Vector

log = logging.getLogger("relief.coordinator")


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
    """Calls `evaluate(snapshot)` in order and hands every result to `sink`, which must not block."""

    def __init__(self, evaluate: Callable[[Snapshot], dict[str, float]], sink: Callable[[Scored], None]) -> None:
        self._evaluate, self._sink = evaluate, sink
        self._queue: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, snapshot: Snapshot) -> None:
        self._queue.put(snapshot)

    def close(self, timeout: float = 5.0) -> None:
        """Finish what was submitted, for at most `timeout` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (snapshot := self._queue.get()) is not None:
            try:
                self._sink(Scored(snapshot.round, snapshot.at, self._evaluate(snapshot)))
            except Exception:  # a score that fails must not end the scores to come
                log.exception("evaluation of round %d failed", snapshot.round)
