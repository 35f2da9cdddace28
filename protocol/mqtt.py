"""The transport over MQTT 5, on paho.

Two threads: paho's for the network, and a supervisor that makes every connection with a fresh client, watches it, and
decides whether and when to make the next one. paho's own queue, backoff and reconnect stay unused: the queue has no
bound and outlives its connection, the backoff has no jitter, and what the broker refuses for good is repeated for ever.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from functools import lru_cache
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from protocol import tls
from protocol.client import Trouble, connect, fresh, hang_up, properties
from protocol.config import BrokerConfig
from protocol.errors import Congested, TooLarge
from protocol.refusals import NOT_AUTHORISED, WRONG_VERSION, ends_for_good, remedy
from protocol.transport import MAX_PAYLOAD, Connected, Event, Inbox, Lost, Received, Stopped, Will, check_topic
from protocol.window import Publish, Window

SHORT = 10.0  # seconds: a connection that ends sooner after its CONNACK counts against the breaker
SHORT_LIMIT = 5  # short connections in a row; one more and the breaker opens
CONNACK_WAIT = 20.0  # seconds; a broker that serves a storm of reconnects answers late
GOODBYE = 1.0  # seconds a clean close waits for answers
FILTERS_A_PACKET = 8  # what the strictest broker takes in one SUBSCRIBE
OLDER = "speaks MQTT 3.1.1 only: nothing expires there, wills do not wait, its limits are not told"
# RabbitMQ before 3.13 does that.
OLDER_HUNG_UP = OLDER + "; if devices get no blocks, it keeps retained messages from wildcards: use another broker"

log = logging.getLogger("relief.mqtt")


class MqttTransport:
    """One connection of one identity (the client id) to an MQTT broker.

    Starts clean at every connect; the broker keeps the session just as long as the will waits. `counts` has what was
    dropped while down, refused as too large or congested, lost connections, and events the inbox raised at.
    """

    def __init__(self, config: BrokerConfig, identity: str) -> None:
        self.identity = identity
        self.counts: Counter[str] = Counter()
        self._config = config.of(identity)
        self._inbox: Inbox = _ignore
        self._will: Will | None = None
        self._version = MQTTProtocolVersion.MQTTv5
        self._window: Window | None = None  # while connected
        self._supervisor: threading.Thread | None = None
        self._network: threading.Thread | None = None
        self._closing, self._ended = threading.Event(), threading.Event()
        self._connected_at: float | None = None
        self._silent = False  # it did so at MQTT 5
        self._hung_up = False  # it took the connection and ended it before its CONNACK
        self._end: tuple[int, str] | None = None  # reason code (0: nobody gave one) and text
        self._asked: dict[int, list[str]] = {}  # SUBSCRIBE packet -> its filters
        self._asking = threading.Lock()

    # -- the seam ------------------------------------------------------------------------------------------------

    def open(self, inbox: Inbox, will: Will | None = None) -> None:
        """Start connecting; Connected, Lost or Stopped arrive in `inbox`. Every failed attempt is a Lost."""
        if self._supervisor is not None:
            raise RuntimeError(f"the connection of {self.identity} was opened before: make a new transport")
        self._inbox, self._will = inbox, will
        self._supervisor = threading.Thread(target=self._supervise, name=f"mqtt {self.identity}", daemon=True)
        self._supervisor.start()

    def subscribe(self, *filters: str) -> None:
        """Ask for these topics at QoS 1; nothing while the connection is down."""
        window = self._window
        for first in range(0, len(filters), FILTERS_A_PACKET):
            some = list(filters[first : first + FILTERS_A_PACKET])
            if window is not None:
                with self._asking:  # or the answer could come before the question is noted
                    mid = window.client.subscribe([(name, window.max_qos) for name in some])[1]
                    if mid is not None:
                        self._asked[mid] = some

    def unsubscribe(self, *filters: str) -> None:
        """The opposite."""
        window = self._window
        if window is not None and filters:
            window.client.unsubscribe(list(filters))

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry: int | None = None
    ) -> None:
        """Send, or drop while the connection is down. Raises TooLarge and Congested."""
        check_topic(topic)
        window = self._window
        if window is None:
            self.counts["dropped while down"] += 1
            return
        extra = None
        if expiry is not None and self._version == MQTTProtocolVersion.MQTTv5:
            extra = _expires(expiry)
        try:
            window.put(Publish(topic, bytes(payload), min(qos, window.max_qos), retain, extra))
        except (TooLarge, Congested) as error:
            self.counts[type(error).__name__] += 1
            raise
        self._pump(window)

    def close(self, *, clean: bool = True) -> None:
        """Stop. Clean: what was published is answered first (a second at most) and the will is not sent."""
        self._inbox = _ignore
        window = self._window
        if window is not None and clean:
            window.drain(GOODBYE, self._ended)
            self._closing.set()
            five = self._version == MQTTProtocolVersion.MQTTv5
            ending = properties(PacketTypes.DISCONNECT, SessionExpiryInterval=0) if five else None
            window.client.disconnect(properties=ending)
            self._ended.wait(GOODBYE)
        self._closing.set()
        self._ended.set()
        if self._supervisor and self._supervisor is not threading.current_thread():
            self._supervisor.join(self._config.connect_timeout + GOODBYE)

    # -- the supervisor ------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        delay, short = self._first_delay(), 0
        while not self._closing.is_set():
            code, reason = self._one_connection()
            if self._closing.is_set():
                return
            five = self._version == MQTTProtocolVersion.MQTTv5
            # Brokers of 3.1.1 say so, or hang up at the first packet. Every new connection tries MQTT 5 first.
            if five and (code == WRONG_VERSION or (self._hung_up and not ends_for_good(code))):
                self._version, self._silent = MQTTProtocolVersion.MQTTv311, self._hung_up
                continue
            self._version = MQTTProtocolVersion.MQTTv5
            self.counts["lost"] += 1
            if self._connected_at is not None:
                short = short + 1 if time.monotonic() - self._connected_at < SHORT else 0
                delay = self._first_delay()
            if short > SHORT_LIMIT and not ends_for_good(code):
                # Mosquitto 2.0 tells nobody that he was replaced; two of one name kick each other for ever.
                reason = (
                    f"{short} connections in a row ended within {SHORT:g} s, the last: {reason}. Most often another "
                    f"connection has the identity {self.identity}: give every one its own; else see the broker's log"
                )
            if short > SHORT_LIMIT or ends_for_good(code):
                log.error("%s: %s", self.identity, reason)
                self._tell(Stopped(code, reason))
                return
            self._tell(Lost(reason))
            self._closing.wait(delay)
            delay = min(delay * 2, self._config.reconnect_max * random.uniform(0.5, 1.0))

    def _first_delay(self) -> float:
        return min(self._config.reconnect_min * random.uniform(1.0, 8.0), self._config.reconnect_max)

    def _one_connection(self) -> tuple[int, str]:
        """Connect, stay until the end, say why it ended."""
        where, trouble = self._config.where, Trouble()
        self._connected_at = self._network = self._end = None
        self._hung_up = False
        self._ended.clear()
        self._asked.clear()
        try:
            client = self._client(trouble)
        except OSError as error:
            return NOT_AUTHORISED, tls.unusable(self._config, error)
        try:
            connect(client, self._config, self._version, self._will)
            self._watch(client)
        except (OSError, ValueError) as error:
            told, ours = tls.explain(self._config, str(error))
            return (NOT_AUTHORISED if ours else 0), told or f"broker {where} cannot be reached: {error}"
        finally:
            self._window = None
            hang_up(client)
        self._hung_up = self._network is None and self._ended.is_set()
        told, ours = tls.explain(self._config, trouble.last)
        if not told and self._network is None and not self._closing.is_set():
            told, ours = tls.suspect(self._config)
        if told:
            return (NOT_AUTHORISED if ours else 0), told
        code, reason = self._end or (0, "the connection ended")
        return code, f"{reason}; {trouble.last}" if trouble.last and not code else reason

    def _watch(self, client: Client) -> None:
        """Return when the connection has ended: it said so, nobody answered, or paho's thread is dead."""
        patience = time.monotonic() + CONNACK_WAIT
        while not self._ended.wait(1.0) and not self._closing.is_set():
            if self._network is None and time.monotonic() > patience:
                self._end = (0, f"broker {self._config.where} took the connection and did not answer")
                return
            if self._network is not None and not self._network.is_alive():
                self._end = (0, "the network thread died")
                self.counts["network thread died"] += 1
                return

    def _client(self, trouble: Trouble) -> Client:
        client = fresh(self._config, self.identity, self._version, self._will, trouble)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_message, client.on_publish = self._on_message, self._on_publish
        client.on_subscribe = self._on_subscribe
        return client

    # -- paho's callbacks, in its network thread: they record, enqueue, and never raise or wait -------------------

    def _on_connect(
        self, client: Client, _: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._network = threading.current_thread()
        if reason.is_failure:
            self._end = (reason.value, remedy(reason.value, self.identity))
            return
        if not getattr(properties, "RetainAvailable", 1):
            self._end = (154, remedy(154, self.identity))
            client.disconnect()
            return
        if self._version != MQTTProtocolVersion.MQTTv5:
            log.warning("broker %s %s", self._config.where, OLDER_HUNG_UP if self._silent else OLDER)
        self._connected_at = time.monotonic()
        window = Window(
            client,
            publishes=min(getattr(properties, "ReceiveMaximum", 65535), self._config.inflight),
            max_bytes=self._config.queue_bytes,
            max_payload=min(getattr(properties, "MaximumPacketSize", MAX_PAYLOAD), MAX_PAYLOAD),
            max_qos=getattr(properties, "MaximumQoS", 1),
        )
        self._window = window
        self._tell(Connected(window.max_payload, window.max_qos))

    def _on_disconnect(
        self, client: Client, _: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._window = None
        if self._end is None and flags.is_disconnect_packet_from_server:
            self._end = (reason.value, remedy(reason.value, self.identity))
        elif self._end is None:
            self._end = (0, f"the connection to {self._config.where} was lost ({reason})")
        self._ended.set()

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self.counts["topic not UTF-8"] += 1
            return
        self._tell(Received(topic, bytes(message.payload), bool(message.retain)))

    def _on_publish(self, client: Client, _: Any, mid: int, reason: ReasonCode, properties: Properties | None) -> None:
        window = self._window
        if window is not None and window.client is client:
            window.answered.append((mid, reason.value))
            self._pump(window)

    def _on_subscribe(
        self, client: Client, _: Any, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        with self._asking:
            filters = self._asked.pop(mid, [])
        refused = [name for name, reason in zip(filters, reasons, strict=False) if reason.is_failure]
        # The broker's own numbers are a gift that many keep to themselves.
        if which := next((name for name in refused if not name.startswith("$SYS/")), ""):
            self._end = (NOT_AUTHORISED, remedy(NOT_AUTHORISED, self.identity, f"subscribe to {which}"))
            self._ended.set()

    def _pump(self, window: Window) -> None:
        window.pump()
        if window.denied is not None and self._end is None:
            self._end = (NOT_AUTHORISED, remedy(NOT_AUTHORISED, self.identity, f"publish on {window.denied}"))
            self._ended.set()

    def _tell(self, event: Event) -> None:
        try:
            self._inbox(event)
        except Exception:
            self.counts["inbox raised"] += 1
            log.exception("%s: the inbox raised at %s", self.identity, type(event).__name__)


@lru_cache(maxsize=64)
def _expires(seconds: int) -> Properties:
    """paho only reads it, and takes its time to make one."""
    return properties(PacketTypes.PUBLISH, MessageExpiryInterval=seconds)


def _ignore(event: Event) -> None:
    """The inbox of a transport that is not open."""
