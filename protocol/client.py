"""One paho client for one connection: made from the configuration, connected, and hung up."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import Any, cast

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from protocol import tls
from protocol.buffered import BufferedClient
from protocol.config import BrokerConfig
from protocol.transport import Will


class Trouble(logging.Handler):
    """Keeps paho's last error, which it only logs: the text of a TLS alert is nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""
        self.logger = logging.Logger("paho", logging.ERROR)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Take the place of the one before."""
        self.last = record.getMessage()


def fresh(
    config: BrokerConfig, identity: str, version: MQTTProtocolVersion, will: Will | None, trouble: Trouble
) -> Client:
    """A client without callbacks, not connected. OSError where the TLS files cannot be used."""
    five = version == MQTTProtocolVersion.MQTTv5
    client = BufferedClient(
        CallbackAPIVersion.VERSION2,
        client_id=identity,
        protocol=version,
        clean_session=None if five else True,
        reconnect_on_failure=False,
    )
    client.suppress_exceptions = True
    client.enable_logger(trouble.logger)
    client.connect_timeout = config.connect_timeout
    client.max_inflight_messages_set(0)  # protocol.window keeps the broker's limit, which paho does not read
    client.on_socket_open = _no_delay
    if config.username is not None:
        client.username_pw_set(config.username, config.password)
    context = tls.client_context(config)
    if context is not None:
        client.tls_set_context(context)
    if will is not None:
        delay = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=will.delay) if five else None
        client.will_set(will.topic, will.payload, qos=1, retain=True, properties=delay)
    return client


def connect(client: Client, config: BrokerConfig, version: MQTTProtocolVersion, will: Will | None) -> None:
    """Connect and start paho's thread; OSError where there is nobody. Always a clean start."""
    more: dict[str, Any] = {}
    if version == MQTTProtocolVersion.MQTTv5:
        # A session that ends publishes its will at once, whatever the will's delay: let it last as long.
        expiry = will.delay if will else 0
        more = {"clean_start": True, "properties": properties(PacketTypes.CONNECT, SessionExpiryInterval=expiry)}
    client.connect(config.host, config.port, config.keepalive, **more)
    client.loop_start()


def hang_up(client: Client) -> None:
    """End the connection without a word and wait for paho's thread."""
    sock = client.socket()
    if sock is not None:
        with suppress(OSError, ValueError):
            # The plain socket's shutdown: SSLSocket's own pulls the TLS state from under paho's thread.
            socket.socket.shutdown(cast(socket.socket, sock), socket.SHUT_RDWR)
    with suppress(AttributeError):  # paho reads its thread twice, and the thread unsets it when it ends
        client.loop_stop()


def properties(packet: int, **values: int) -> Properties:
    """MQTT 5 properties of one kind of packet."""
    made = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(made, name, value)
    return made


def _no_delay(client: Client, _: Any, sock: Any) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
