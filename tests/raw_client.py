"""A bare MQTT 5 client for tests that look at the broker itself: it tries what our transport would never try."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def context(folder: Path | None, ca: Path) -> ssl.SSLContext:
    """TLS with the certificate in `folder`, or with none."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(ca)
    if folder is not None:
        made.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return made


class RawClient:
    """Connects, publishes, subscribes; keeps what arrived and the broker's answer to every publish."""

    def __init__(
        self,
        port: int,
        tls: ssl.SSLContext | None = None,
        name: str = "raw",
        will: tuple[str, bytes, bool] | None = None,
        session: int | None = None,
    ) -> None:
        self.arrived: list[tuple[str, bytes, bool]] = []
        self.answers: dict[int, int] = {}
        self.refused: str = ""
        self.lost = threading.Event()
        self._port, self._up, self._subscribed = port, threading.Event(), threading.Event()
        self._session = session
        self._client = Client(
            CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False
        )
        if tls is not None:
            self._client.tls_set_context(tls)
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1, retain=will[2])
        self._client.on_socket_open = lambda c, u, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.on_connect = self._connected
        self._client.on_disconnect = lambda *_: self.lost.set()
        self._client.on_subscribe = self._client.on_unsubscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda c, u, m: self.arrived.append((m.topic, bytes(m.payload), bool(m.retain)))
        self._client.on_publish = lambda c, u, mid, reason, p: self.answers.__setitem__(mid, reason.value)

    def connect(self, patience: float = 5.0) -> bool:
        """Whether the broker let us in; `refused` says why not."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if self._session is not None:
            properties.SessionExpiryInterval = self._session
        try:
            self._client.connect("127.0.0.1", self._port, clean_start=self._session is None, properties=properties)
        except OSError as error:
            self.refused = str(error)
            return False
        self._client.loop_start()
        until = time.monotonic() + patience
        while not self._up.wait(0.01) and not self.lost.is_set() and time.monotonic() < until:
            pass
        return self._up.is_set() and not self.refused

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Send at QoS 1; the number under which the answer will be in `answers`."""
        return self._client.publish(topic, payload, qos=1, retain=retain).mid

    def settled(self, mids: list[int], patience: float = 10.0) -> bool:
        """Whether all of these were answered in time."""
        until = time.monotonic() + patience
        while not all(mid in self.answers for mid in mids):
            if time.monotonic() > until or self.lost.is_set():
                return False
            time.sleep(0.002)
        return True

    def subscribe(self, *filters: str) -> None:
        """Subscribe and wait for the answer."""
        self._subscribed.clear()
        self._client.subscribe([(name, 1) for name in filters])
        assert self._subscribed.wait(5)

    def unsubscribe(self, *filters: str) -> None:
        """Unsubscribe and wait for the answer, which comes after everything that was sent to us before."""
        self._subscribed.clear()
        self._client.unsubscribe(list(filters))
        assert self._subscribed.wait(5)

    def round_trip(self) -> None:
        """Wait until everything that the broker sent to us before has arrived."""
        self.unsubscribe("nothing/at/all")

    def crash(self) -> None:
        """Leave without a word, so that the will is sent."""
        sock = self._client.socket()
        if sock is not None:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # type: ignore[arg-type]
        self._stop()

    def close(self) -> None:
        """Leave politely."""
        self._client.disconnect()
        self._stop()

    def _stop(self) -> None:
        with suppress(AttributeError):  # paho's thread may end between its two looks at it
            self._client.loop_stop()

    def _connected(self, client: Client, _: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.refused = str(reason)
        self._up.set()
