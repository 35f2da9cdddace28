"""A transport that misbehaves on purpose: drops, delays, duplicates, reorders and cuts, alike for the same seed.

It wraps any transport and owns no thread: what happens later happens through `schedule`.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protocol.errors import ProtocolError, TooLarge
from protocol.timing import Schedule
from protocol.transport import Connected, Event, Inbox, Lost, Received, Stopped, Transport, Will, check_topic


@dataclass(frozen=True)
class Faults:
    """Probabilities per message and direction, and (least, most) seconds.

    A message that is reordered overtakes and is overtaken; all others keep their order however long they take.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    cut: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)
    cut_seconds: tuple[float, float] = (0.0, 1.0)


class FaultyTransport:
    """`inner` under `faults`. `cut` can be called as well; `counts` tells what was done."""

    def __init__(self, inner: Transport, faults: Faults, *, seed: int, schedule: Schedule) -> None:
        self.identity = inner.identity
        self.faults = faults
        self.counts: Counter[str] = Counter()
        self._inner, self._schedule = inner, schedule
        self._random = random.Random(f"{seed} {inner.identity}")
        self._inbox: Inbox = lambda event: None
        self._will: Will | None = None
        self._filters: dict[str, None] = {}
        self._connected: Connected | None = None  # of the inner transport
        self._is_cut = self._closed = False
        self._life = 0  # grows at every loss: what was under way before is gone
        self._lock = threading.Lock()
        self._up, self._down = _Lane(), _Lane()

    # -- the seam ------------------------------------------------------------------------------------------------

    def open(self, inbox: Inbox, will: Will | None = None) -> None:
        """Open the inner transport; its events come through the faults."""
        self._inbox, self._will = inbox, will
        self._inner.open(self._event, will)

    def subscribe(self, *filters: str) -> None:
        """Reaches the broker unless the connection is cut."""
        if not self._is_cut:
            self._filters.update(dict.fromkeys(filters))
            self._inner.subscribe(*filters)

    def unsubscribe(self, *filters: str) -> None:
        """The opposite."""
        for unwanted in filters:
            self._filters.pop(unwanted, None)
        self._inner.unsubscribe(*filters)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry: int | None = None
    ) -> None:
        """Perhaps send, perhaps later, perhaps twice. Raises TooLarge like the inner transport."""
        check_topic(topic)
        if self._connected and len(payload) > self._connected.max_payload:
            raise TooLarge(topic, len(payload), self._connected.max_payload)
        if self._is_cut:
            self.counts["dropped while cut"] += 1
            return
        self._pass(self._up, partial(self._send, topic, payload, qos, retain, expiry))

    def close(self, *, clean: bool = True) -> None:
        """Close the inner transport; what is under way is lost."""
        self._closed = True
        self._life += 1
        self._inner.close(clean=clean)

    def cut(self, seconds: float) -> None:
        """Lose the connection for `seconds`: all under way, the subscriptions; the will goes out if it is long."""
        with self._lock:
            if self._is_cut or self._closed or self._connected is None:
                return
            self._is_cut = True
            self._life += 1
            life, filters = self._life, list(self._filters)
            self._filters.clear()
        self.counts["cut"] += 1
        self._up.clear()
        self._down.clear()
        if filters:
            self._inner.unsubscribe(*filters)
        self._inbox(Lost("the connection was cut"))
        if self._will is not None and self._will.delay < seconds:
            self._schedule(self._will.delay, partial(self._bury, life, self._will))
        self._schedule(seconds, partial(self._heal, life))

    # -- what happens to a message -------------------------------------------------------------------------------

    def _pass(self, lane: _Lane, deliver: Callable[[], None]) -> None:
        with self._lock:
            draw, faults = self._random.random, self.faults
            dropped = draw() < faults.drop
            copies = 2 if draw() < faults.duplicate else 1
            waits = [(self._random.uniform(*faults.delay), draw() < faults.reorder) for _ in range(copies)]
            cut = self._random.uniform(*faults.cut_seconds) if draw() < faults.cut else None
            life = self._life
        if dropped:
            self.counts["dropped"] += 1
        else:
            self.counts["duplicated"] += copies - 1
            for wait, reorder in waits:
                self._later(lane, wait, reorder, partial(self._if_alive, life, deliver))
        if cut is not None:
            self.cut(cut)

    def _later(self, lane: _Lane, wait: float, reorder: bool, deliver: Callable[[], None]) -> None:
        if reorder:
            self.counts["reordered"] += 1
            # Half a delay more on average: enough to change places with neighbours even where delays are equal.
            self._schedule(wait + self._random.uniform(0.0, max(self.faults.delay[1], 0.01)), deliver)
        else:
            ready = lane.enter(deliver)
            if wait > 0:
                self._schedule(wait, ready)
            else:
                ready()

    def _if_alive(self, life: int, deliver: Callable[[], None]) -> None:
        if life == self._life and not self._closed:
            deliver()

    def _send(self, topic: str, payload: bytes, qos: int, retain: bool, expiry: int | None) -> None:
        try:
            self._inner.publish(topic, payload, qos=qos, retain=retain, expiry=expiry)
        except ProtocolError as error:  # nobody is there any more to raise it to
            self.counts[type(error).__name__] += 1

    def _event(self, event: Event) -> None:
        if isinstance(event, Received):
            if not self._is_cut:
                self._pass(self._down, partial(self._inbox, event))
            return
        self._connected = event if isinstance(event, Connected) else None
        if isinstance(event, Lost):
            self._life += 1
            self._filters.clear()
        if isinstance(event, Stopped) or not self._is_cut:
            self._inbox(event)

    def _bury(self, life: int, will: Will) -> None:
        if life == self._life and self._is_cut and not self._closed:
            self._inner.publish(will.topic, will.payload, retain=True)

    def _heal(self, life: int) -> None:
        if not self._is_cut or self._closed:
            return
        self._is_cut = False
        if self._connected is not None:  # else the inner transport tells when it is back
            self._inbox(self._connected)


class _Lane:
    """Keeps one direction's order: what is ready leaves only after all that entered before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[_Passenger] = deque()
        self._leaving = False

    def enter(self, deliver: Callable[[], None]) -> Callable[[], None]:
        """Take a place; call what is returned when it may leave."""
        passenger = _Passenger(deliver)
        with self._lock:
            self._queue.append(passenger)

        def ready() -> None:
            passenger.ready = True
            self._leave()

        return ready

    def clear(self) -> None:
        with self._lock:
            self._queue.clear()

    def _leave(self) -> None:
        with self._lock:
            if self._leaving:
                return
            self._leaving = True
        while True:
            with self._lock:
                if not self._queue or not self._queue[0].ready:
                    self._leaving = False
                    return
                passenger = self._queue.popleft()
            try:
                passenger.deliver()
            except BaseException:
                self._leaving = False
                raise


@dataclass
class _Passenger:
    deliver: Callable[[], None]
    ready: bool = False
