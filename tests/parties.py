"""Parties of transport tests: a transport with a queue behind it, and patience."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import TypeVar

from protocol.transport import Connected, Event, Received, Transport, Will
from protocol.waiting import take

E = TypeVar("E")
PATIENCE = 10.0  # seconds; a pass takes milliseconds


class Party:
    """One transport and what arrived on it; with `events` given, its owner looks at them."""

    def __init__(
        self, transport: Transport, will: Will | None = None, events: queue.SimpleQueue[Event] | None = None
    ) -> None:
        self.transport = transport
        self.events: queue.SimpleQueue[Event] = events or queue.SimpleQueue()
        self.name = transport.identity
        transport.open(self.events.put, will)
        if events is None:
            self.connected = self.next(Connected)

    def next(self, kind: type[E], patience: float = PATIENCE) -> E:
        """The next event, which must be of `kind`."""
        event = take(self.events, patience)
        assert isinstance(event, kind), f"{self.name} got {event} instead of {kind.__name__}"
        return event

    def until(self, kind: type[E], patience: float = PATIENCE) -> E:
        """The next event of `kind`; others are passed over."""
        end = time.monotonic() + patience
        while True:
            event = take(self.events, max(0.001, end - time.monotonic()))
            if isinstance(event, kind):
                return event

    def listen(self, *filters: str) -> None:
        """Subscribe, and return when the broker has carried it out (a message to ourselves came back)."""
        here = f"sync/{self.name}"
        self.transport.subscribe(*filters, here)
        kept = []
        self.transport.publish(here, b"")
        while (event := self.next(Received)).topic != here:
            kept.append(event)
        for event in kept:  # retained messages that came before
            self.events.put(event)
        self.transport.unsubscribe(here)

    def payloads(self, count: int) -> list[bytes]:
        """Of the next `count` messages."""
        return [self.next(Received).payload for _ in range(count)]

    def silent(self, seconds: float = 0.15) -> bool:
        """Whether nothing arrives for this long."""
        try:
            event = take(self.events, seconds)
        except queue.Empty:
            return True
        raise AssertionError(f"{self.name} got {event}")


def eventually(true: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether `true` holds within `patience` seconds."""
    end = time.monotonic() + patience
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
