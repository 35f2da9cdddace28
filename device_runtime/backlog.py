"""Updates that nobody has answered yet: when to send which again, or to ask what of it has not come."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FIRST, LONGEST = 10.0, 120.0  # seconds between repeats: doubled each time


@dataclass
class _Entry:
    """sent: times in a row; begun: some of it may be at the coordinator; asked: what is missing, no answer yet."""

    due: float
    sent: int = 0
    begun: bool = False
    asked: bool = False


class Backlog:
    """Update ids with the time they are due; each wait is drawn from half to all of its length."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._entries: dict[str, _Entry] = {}

    def __contains__(self, update: object) -> bool:
        return update in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, update: str, due: float, *, begun: bool = False) -> None:
        self._entries[update] = _Entry(due, begun=begun)

    def remove(self, update: str) -> None:
        self._entries.pop(update, None)

    def due(self) -> float:
        """When the next one is due; inf where there is none."""
        return min((e.due for e in self._entries.values()), default=math.inf)

    def all_due(self, now: float, spread: float = 0.0, *, anew: bool = False) -> None:
        """The other side is there again: go on with everything, over `spread` seconds, without waiting longer than
        planned; `anew` where it has nothing of what was begun."""
        for e in self._entries.values():
            e.sent = 0
            e.begun = e.begun and not anew
            e.asked = False
            e.due = min(e.due, now + spread * self._jitter())

    def hurry(self, update: str, now: float) -> None:
        """It was asked for: send it now, unless it is not due for the first time yet."""
        e = self._entries[update]
        if e.sent:
            e.due = now

    def postpone(self, update: str, now: float) -> None:
        """It was refused for now."""
        e = self._entries[update]
        e.due = now + self._wait(max(1, e.sent))

    def answered(self, update: str) -> bool:
        """Whether the question what is missing was open; it no longer is."""
        e = self._entries[update]
        was, e.asked = e.asked, False
        return was

    def take(self, now: float, *, ask: bool = False) -> list[tuple[str, bool]]:
        """Those that are due, oldest first, each with its next repeat planned.

        True with those of which only what is missing should be sent: those begun before, where the other side can be
        asked (`ask`). The question is repeated like an upload, until it is answered.
        """
        ready = sorted((u for u, e in self._entries.items() if e.due <= now), key=lambda u: self._entries[u].due)
        for u in ready:
            e = self._entries[u]
            e.sent += 1
            e.due = now + self._wait(e.sent)
            e.asked, e.begun = ask and e.begun, True
        return [(u, self._entries[u].asked) for u in ready]

    def _wait(self, sent: int) -> float:
        return min(LONGEST, FIRST * 2.0 ** (sent - 1)) * (0.5 + 0.5 * self._jitter())
