"""Doing something later: the clock that memory and faulty transports run on, real here, virtual in simulations."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Schedule(Protocol):
    """Calls `fn` once after `delay` seconds and returns at once; equal delays keep their order."""

    def __call__(self, delay: float, fn: Callable[[], None], /) -> object: ...


class WallClock:
    """The real schedule: one thread while something waits, none otherwise."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._thread: threading.Thread | None = None

    def __call__(self, delay: float, fn: Callable[[], None], /) -> None:
        with self._changed:
            self._count += 1
            heapq.heappush(self._waiting, (time.monotonic() + delay, self._count, fn))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)
                self._thread.start()
            self._changed.notify()

    def cancel(self) -> None:
        """Forget everything that waits; the thread ends."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting and (left := self._waiting[0][0] - time.monotonic()) > 0:
                    self._changed.wait(left)
                if not self._waiting:
                    self._thread = None
                    return
                fn = heapq.heappop(self._waiting)[2]
            fn()
