"""The publishes of one connection: those that wait for their turn, and those the broker has not answered yet.

paho ignores the broker's ReceiveMaximum and MaximumPacketSize and bounds nothing, so both are kept here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import NamedTuple

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties

from protocol.errors import Congested, TooLarge
from protocol.refusals import NOT_AUTHORISED

HEADERS = 16  # bytes of a PUBLISH beside topic and payload: header, lengths, packet id, expiry

log = logging.getLogger("relief.mqtt")


class Publish(NamedTuple):
    """One message on its way to the broker."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties | None


class Window:
    """Lets `publishes` be unanswered at a time, in order, and `max_bytes` wait.

    paho's callbacks hold its lock and publishers need it, so nobody waits for our lock: whoever cannot have it leaves
    the work to the one who has, and that one looks again after letting go.
    """

    def __init__(self, client: Client, *, publishes: int, max_bytes: int, max_payload: int, max_qos: int) -> None:
        self.client, self.max_payload, self.max_qos = client, max_payload, max_qos
        self.answered: deque[tuple[int, int]] = deque()  # packet id, reason code
        self.denied: str | None = None  # the first topic we were not authorised to publish on
        self._free, self._max_bytes = publishes, max_bytes
        self._queue: deque[Publish] = deque()
        self._unanswered: dict[int, Publish] = {}  # by packet id
        self._sending, self._taking = threading.Lock(), threading.Lock()
        self._taken = self._released = 0  # bytes, ever

    def put(self, message: Publish) -> None:
        """Take a message; `pump` sends it. Raises TooLarge and Congested."""
        size = len(message.payload)
        packet = size + len(message.topic.encode()) + HEADERS
        if packet > self.max_payload:
            raise TooLarge(message.topic, packet, self.max_payload)
        with self._taking:
            waiting = self._taken - self._released
            if waiting and waiting + size > self._max_bytes:
                raise Congested(message.topic, waiting, self._max_bytes)
            self._taken += size
            self._queue.append(message)

    def pump(self) -> None:
        """Account for the broker's answers and send what it allows. From any thread, callbacks included."""
        while self.answered or (self._queue and self._free > 0):
            if not self._sending.acquire(blocking=False):
                return
            try:
                self._settle()
                while self._queue and self._free > 0:
                    self._send(self._queue.popleft())
                    self._settle()
            finally:
                self._sending.release()

    def drain(self, seconds: float, ended: threading.Event) -> None:
        """Wait until everything is answered, the connection has ended, or `seconds` are over."""
        until = time.monotonic() + seconds
        while self._taken > self._released or self._unanswered or self._queue:
            if time.monotonic() > until or ended.wait(0.002):
                return
            self.pump()

    def _send(self, message: Publish) -> None:
        sent = self.client.publish(*message)
        if sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._unanswered[sent.mid] = message
            self._free -= message.qos
        else:  # the connection is gone, and this window with it
            self._released += len(message.payload)

    def _settle(self) -> None:
        while self.answered:
            mid, code = self.answered.popleft()
            message = self._unanswered.pop(mid, None)
            if message is None:
                continue
            self._released += len(message.payload)
            self._free += message.qos
            if code == NOT_AUTHORISED and self.denied is None:
                self.denied = message.topic
            elif code >= 128:
                log.warning("broker refused a publish on %s with reason %d", message.topic, code)
