"""Refusals: all are counted, each kind is logged once per sender, and repeated ones lead into quarantine."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from coordinator.defence import Defence
from coordinator.events import Event, Suspended
from coordinator.registry import Registry

log = logging.getLogger("relief.coordinator")

OPERATOR = ""  # who is not a device


class Refusals:
    """`counts`: kind -> how often. A device that is refused too often is Suspended, told to `feed`.

    `registry` is only looked at: nothing counts for or against a device that is held. `now` is the loop's clock.
    """

    def __init__(
        self, defence: Defence, registry: Registry, feed: Callable[[Event], None], now: Callable[[], float]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._defence, self._registry, self._feed, self._now = defence, registry, feed, now
        self._logged: set[tuple[str, str]] = set()

    def refuse(self, who: str, reason: str) -> None:
        """Count a refusal of something that `who`, a device or OPERATOR, sent."""
        kind = reason.split(":")[0]
        self.counts[kind] += 1
        # Each kind once per sender, so that a broken device cannot fill the log.
        if (who, kind) not in self._logged and len(self._logged) < 10_000:
            self._logged.add((who, kind))
            log.warning("%s: %s", who, reason)
        if who == OPERATOR or who in self._registry.quarantined:
            return
        now = self._now()
        held = self._defence.refused(who, reason, now)
        if held:
            log.warning("%s is in quarantine for %.0f s: %s", who, held.until - now, held.reason)
            self._feed(Suspended(who, held))

    def accepted(self, device: str) -> None:
        """An update of the device is stored."""
        if device not in self._registry.quarantined:
            self._defence.accepted(device)

    def released(self, device: str) -> None:
        """An operator takes the device in again."""
        self._defence.released(device)
