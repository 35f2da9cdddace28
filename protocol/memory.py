"""A broker within the process, with the semantics that the protocol uses of MQTT 5.

Retained messages, wills with their delay, wildcards, message expiry, take-over of an identity. Quality of service makes
no difference: nothing is lost, everything arrives in the order it was published.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from protocol.errors import TooLarge
from protocol.timing import Schedule, WallClock
from protocol.topics import matches
from protocol.transport import MAX_PAYLOAD, Connected, Event, Inbox, Lost, Received, Stopped, Will, check_topic


@dataclass
class _Retained:
    payload: bytes
    until: float | None  # by the broker's clock


class MemoryBroker:
    """Where memory transports meet. `now` and `schedule` are the clock, replaced in simulations.

    Events are handed to inboxes one at a time, in the thread that caused them: when `publish` returns, every subscriber
    has its copy, unless it was called from an inbox itself; then its turn comes after the event being delivered.
    """

    def __init__(
        self,
        *,
        max_payload: int = MAX_PAYLOAD,
        now: Callable[[], float] = time.monotonic,
        schedule: Schedule | None = None,
    ) -> None:
        self.max_payload = max_payload
        self._now, self._clock = now, WallClock() if schedule is None else None
        self._schedule: Schedule = schedule or self._clock or WallClock()
        self._lock = threading.RLock()
        self._retained: dict[str, _Retained] = {}
        self._sessions: dict[str, MemoryTransport] = {}
        self._generation: dict[str, int] = {}
        self._events: deque[tuple[MemoryTransport, Event]] = deque()
        self._delivering = False

    def retained(self, topic: str) -> bytes | None:
        """What is retained on `topic` now."""
        with self._lock:
            kept = self._retained.get(topic)
            return kept.payload if kept and not self._expired(kept) else None

    def cut(self, identity: str, seconds: float = 0.0) -> None:
        """Take the connection of `identity` away, as a network would; it is back after `seconds`."""
        with self._lock:
            transport = self._sessions.pop(identity, None)
            if transport is None:
                return
            self._bury(transport)
            transport._filters.clear()
            self._tell(transport, Lost("the connection was cut"))
            self._schedule(seconds, lambda: self._again(transport))
            self._deliver()

    def close(self) -> None:
        """Forget wills and reconnects that wait."""
        if self._clock:
            self._clock.cancel()

    # -- called by transports ------------------------------------------------------------------------------------

    def _open(self, transport: MemoryTransport) -> None:
        with self._lock:
            before = self._sessions.get(transport.identity)
            if before is not None and before is not transport:
                before._closed = True
                self._bury(before)
                self._tell(before, Stopped(142, f"another connection took the identity {transport.identity}"))
            self._sessions[transport.identity] = transport
            self._generation[transport.identity] = self._generation.get(transport.identity, 0) + 1
            self._tell(transport, Connected(self.max_payload))
            self._deliver()

    def _again(self, transport: MemoryTransport) -> None:
        with self._lock:
            if not transport._closed and transport.identity not in self._sessions:
                self._open(transport)

    def _leave(self, transport: MemoryTransport, *, clean: bool) -> None:
        with self._lock:
            if self._sessions.get(transport.identity) is transport:
                del self._sessions[transport.identity]
                if not clean:
                    self._bury(transport)
                self._deliver()

    def _bury(self, transport: MemoryTransport) -> None:
        """Publish the will after its delay, unless the identity is back by then."""
        will, generation = transport._will, self._generation.get(transport.identity, 0)
        if will is None:
            return

        def publish() -> None:
            with self._lock:
                if self._generation.get(transport.identity, 0) == generation:
                    self._publish(will.topic, will.payload, retain=True, expiry=None)

        if will.delay > 0:
            self._schedule(will.delay, publish)
        else:
            publish()

    def _subscribe(self, transport: MemoryTransport, filters: tuple[str, ...]) -> None:
        with self._lock:
            if self._sessions.get(transport.identity) is not transport:
                return
            for wanted in filters:
                transport._filters[wanted] = None
                for topic, kept in list(self._retained.items()):
                    if self._expired(kept):
                        del self._retained[topic]
                    elif matches(wanted, topic):
                        self._tell(transport, Received(topic, kept.payload, retained=True))
            self._deliver()

    def _publish(self, topic: str, payload: bytes, *, retain: bool, expiry: int | None) -> None:
        with self._lock:
            if retain and payload:
                self._retained[topic] = _Retained(payload, None if expiry is None else self._now() + expiry)
            elif retain:
                self._retained.pop(topic, None)
            message = Received(topic, payload)
            for transport in self._sessions.values():
                for wanted in transport._filters:
                    if matches(wanted, topic):
                        self._tell(transport, message)
                        break
            self._deliver()

    def _expired(self, kept: _Retained) -> bool:
        return kept.until is not None and self._now() >= kept.until

    def _tell(self, transport: MemoryTransport, event: Event) -> None:
        self._events.append((transport, event))

    def _deliver(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._events:
                transport, event = self._events.popleft()
                if transport._inbox and (not transport._closed or isinstance(event, Stopped)):
                    transport._inbox(event)
        finally:
            self._delivering = False


class MemoryTransport:
    """One connection to a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, identity: str) -> None:
        self.identity = identity
        self._broker = broker
        self._inbox: Inbox | None = None
        self._will: Will | None = None
        self._filters: dict[str, None] = {}
        self._closed = True

    def open(self, inbox: Inbox, will: Will | None = None) -> None:
        """Connect; `inbox` gets Connected before this returns."""
        self._inbox, self._will, self._closed = inbox, will, False
        self._filters.clear()
        self._broker._open(self)

    def subscribe(self, *filters: str) -> None:
        """Receive these topics; what is retained on them arrives before this returns."""
        self._broker._subscribe(self, filters)

    def unsubscribe(self, *filters: str) -> None:
        """The opposite."""
        with self._broker._lock:
            for unwanted in filters:
                self._filters.pop(unwanted, None)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry: int | None = None
    ) -> None:
        """Hand to every subscriber; dropped while the connection is down. Raises TooLarge."""
        check_topic(topic)
        if len(payload) > self._broker.max_payload:
            raise TooLarge(topic, len(payload), self._broker.max_payload)
        with self._broker._lock:
            if self._broker._sessions.get(self.identity) is self:
                self._broker._publish(topic, bytes(payload), retain=retain, expiry=expiry)

    def close(self, *, clean: bool = True) -> None:
        """Leave; not clean: the will is published after its delay."""
        self._closed = True
        self._broker._leave(self, clean=clean)
