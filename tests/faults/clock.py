"""Virtual time: what is planned happens in order of its time, and nothing waits."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """`clock(delay, fn)` plans, `step` lets the next thing happen. Equal times keep the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def __call__(self, delay: float, fn: Callable[[], None], /) -> None:
        self._count += 1
        heapq.heappush(self._planned, (self.now + max(delay, 0.0), self._count, fn))

    @property
    def next(self) -> float:
        """When the next thing happens; infinite if nothing is planned."""
        return self._planned[0][0] if self._planned else float("inf")

    def step(self) -> None:
        """Go to the next planned time and let it happen."""
        self.now, _, fn = heapq.heappop(self._planned)
        fn()
