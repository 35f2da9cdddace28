"""Watching a fleet as an operator does: the retained summary over MQTT, as plain values."""

from __future__ import annotations

import queue
import time
from types import TracebackType
from typing import Any

from protocol.errors import Unavailable
from protocol.messages import CoordinatorState, RoundSummary, decode
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received, Stopped, Transport
from protocol.waiting import take


class Watch:
    """The latest summary of a fleet. Opens the transport and closes it with its `with` block."""

    def __init__(self, fleet: str, transport: Transport) -> None:
        self.topics, self._transport = Topics(fleet), transport
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.latest: RoundSummary | None = None
        self.online: bool | None = None  # whether the coordinator runs, by its own word or its will; None: not known

    def __enter__(self) -> Watch:
        self._transport.open(self._inbox.put)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()

    def next(self, timeout: float) -> dict[str, Any] | None:
        """The next summary's fields with `round`, `epoch` and `phase`; None if `timeout` seconds bring none.

        Raises Unavailable where the broker refuses us for good.
        """
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            try:
                event = take(self._inbox, left)
            except queue.Empty:
                return None
            if isinstance(event, Connected):
                # The state first: what is retained comes in this order, and a summary outlives its coordinator.
                self._transport.subscribe(self.topics.coordinator("state"), self.topics.coordinator("round"))
            elif isinstance(event, Stopped):
                raise Unavailable(self.topics.root, event.reason)
            elif isinstance(event, Received) and event.topic == self.topics.coordinator("state"):
                self.online = decode(CoordinatorState, event.payload).online if event.payload else None
            elif isinstance(event, Received) and event.payload:
                self.latest = decode(RoundSummary, event.payload)
                return {
                    **self.latest.fields,
                    "round": self.latest.round,
                    "epoch": self.latest.epoch,
                    "phase": self.latest.phase,
                }
        return None
