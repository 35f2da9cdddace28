"""The transport seam: a handful of methods between the protocol and whatever carries it.

Events reach `inbox`, which is called from the transport's own thread: it must only enqueue, never block or raise.
`queue.SimpleQueue().put` is the usual one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MAX_PAYLOAD = 268_435_455  # bytes: MQTT's own limit of a packet


def check_topic(topic: str) -> None:
    """ValueError where nothing can be published: empty, a wildcard, NUL."""
    if not topic or any(sign in topic for sign in "+#\0"):
        raise ValueError(f"{topic!r} is no topic to publish on: it is empty or holds '+', '#' or NUL")


@dataclass(frozen=True)
class Will:
    """What the broker says for us when we are gone; `delay` in seconds, well below a round's deadline."""

    topic: str
    payload: bytes
    delay: int = 5


@dataclass(frozen=True)
class Connected:
    """A connection is up: subscribe and publish retained state again, whatever the broker may remember."""

    max_payload: int  # bytes; a larger publish raises TooLarge
    max_qos: int = 1


@dataclass(frozen=True)
class Lost:
    """The connection is gone; the transport reconnects by itself."""

    reason: str


@dataclass(frozen=True)
class Stopped:
    """The circuit breaker opened: reconnecting would not help. `reason` says what to change."""

    code: int
    reason: str


@dataclass(frozen=True)
class Received:
    """A message of a subscribed topic."""

    topic: str
    payload: bytes
    retained: bool = False


Event = Connected | Lost | Stopped | Received
Inbox = Callable[[Event], None]


class Transport(Protocol):
    """One connection of one identity. Methods may be called from any thread and do not wait for the network."""

    identity: str

    def open(self, inbox: Inbox, will: Will | None = None) -> None:
        """Connect and keep connected; the outcome arrives as an event."""

    def subscribe(self, *filters: str) -> None:
        """Ask for these topics at QoS 1. Subscriptions do not survive a reconnect: repeat them on Connected."""

    def unsubscribe(self, *filters: str) -> None:
        """The opposite."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry: int | None = None
    ) -> None:
        """Send. `expiry` in seconds. While the connection is down QoS 0 is dropped and QoS 1 is dropped too, because
        everything that matters is sent again on Connected. Raises TooLarge above the broker's limit."""

    def close(self, *, clean: bool = True) -> None:
        """Say goodbye (clean: without the will) and stop. Returns once nothing is running any more."""
