"""Refusals: all are counted, each kind is logged once per sender, and repeated ones lead into quarantine."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from math import inf

from coordinator.defence import Defence
from coordinator.events import Event, Wish

log = logging.getLogger("relief.coordinator")

OPERATOR = ""  # who is not a device


class Refusals:
    """`counts`: kind -> how often. A device that is held or let out is a Wish to `feed`; `now` is the loop's clock."""

    def __init__(self, defence: Defence, feed: Callable[[Event], None], now: Callable[[], float]) -> None:
        self.counts: Counter[str] = Counter()
        self._defence, self._feed, self._now = defence, feed, now
        self._held: dict[str, float] = {}  # device -> when its quarantine ends; not those held by an operator
        self._logged: set[tuple[str, str]] = set()

    def refuse(self, who: str, reason: str) -> None:
        """Count a refusal of something that `who`, a device or OPERATOR, sent."""
        kind = reason.split(":")[0]
        self.counts[kind] += 1
        # Each kind once per sender, so that a broken device cannot fill the log.
        if (who, kind) not in self._logged and len(self._logged) < 10_000:
            self._logged.add((who, kind))
            log.warning("%s: %s", who, reason)
        held = self._defence.refused(who, reason, self._now()) if who != OPERATOR else None
        if held:
            log.warning("%s is in quarantine for %.0f s: %s", who, held.until - held.since, held.reason)
            self._feed(Wish("quarantine", who, held.reason))
            self._held[who] = held.until

    @property
    def due(self) -> float:
        """When the next quarantine ends; infinite if none does."""
        return min(self._held.values(), default=inf)

    def let_out(self) -> None:
        """End the quarantines whose time is over."""
        now = self._now()
        for device in [d for d, until in self._held.items() if until <= now]:
            del self._held[device]
            self._feed(Wish("release", device))
