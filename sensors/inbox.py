"""Pieces that wait between the threads that bring them and the one that reads them."""

from __future__ import annotations

import contextlib
import queue

from sensors.stream import Samples

WAITING = 1000  # pieces; beyond, the oldest go and are counted


class Inbox:
    """A queue of pieces that never blocks who brings them. `dropped` counts those that nobody read in time."""

    def __init__(self) -> None:
        self.dropped = 0
        self._pieces: queue.Queue[Samples | None] = queue.Queue(WAITING)

    def put(self, samples: Samples) -> None:
        self._put(samples)

    def wake(self) -> None:
        """Let a reader that waits return with nothing: no more will come."""
        self._put(None)

    def get(self, timeout: float | None = None) -> Samples | None:
        """The oldest piece; None when `timeout` seconds brought none, or when woken."""
        try:
            return self._pieces.get(timeout=timeout)
        except queue.Empty:
            return None

    def _put(self, samples: Samples | None) -> None:
        while True:
            try:
                self._pieces.put_nowait(samples)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._pieces.get_nowait()
                    self.dropped += 1
