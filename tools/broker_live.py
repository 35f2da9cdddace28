"""What is done to a broker that runs: reload, cut a session, clear a fleet's retained state, look from outside."""

from __future__ import annotations

import os
import queue
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from broker_config.check import Finding
from broker_config.directory import Directory, Identity
from broker_config.names import check_fleet
from protocol import tls
from protocol.config import BrokerConfig
from protocol.errors import ProtocolError
from protocol.messages import Status, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received, Stopped, Transport
from protocol.waiting import take

PATIENCE = 5.0  # seconds for the broker to do what it was asked
SILENCE = 0.5  # seconds without another retained message: that was all


class NotRunning(Exception):
    """The broker is not on this machine or does not answer; the text says what to do by hand."""


def pid(directory: Directory) -> int | None:
    """Of the broker of this folder, if it runs on this machine."""
    file = directory.path / "broker" / "mosquitto.pid"
    try:
        number = int(file.read_text())
        name = Path(f"/proc/{number}/comm")
        if name.exists() and name.read_text().strip() != "mosquitto":
            return None  # the number is another program's by now
        os.kill(number, 0)
    except (OSError, ValueError):
        return None
    return number


def reload(directory: Directory) -> bool:
    """Make the running broker read access list and certificates again; False if it does not run here."""
    number = pid(directory)
    if number is None:
        return False
    log = directory.path / "broker" / "mosquitto.log"
    before = log.stat().st_size if log.is_file() else 0
    os.kill(number, signal.SIGHUP)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if log.is_file() and b"Reloading config" in log.read_bytes()[before:]:
            return True
        time.sleep(0.01)
    raise NotRunning(f"the broker (process {number}) did not reload within {PATIENCE:g} s: restart it")


def cut(directory: Directory, name: str, *, port: int | None = None) -> None:
    """End the live session of `name`: a fresh certificate of that name takes it over and leaves.

    Neither a list of revoked certificates nor an access list does that when it is reloaded.
    """
    with _as(directory, name, port) as transport:
        _connect(transport)


def bury(directory: Directory, device: Identity, *, port: int | None = None) -> None:
    """Say that a revoked device is gone, in its place: its own will is not let through any more."""
    topic = Topics(device.fleet).device(device.own, "status")
    with _trusted(directory, device.fleet, port) as transport:
        events = _connect(transport)
        transport.subscribe(topic)
        for event in _retained(events):
            with suppress(ProtocolError):
                last = decode(Status, event.payload)
                death = Status(online=False, boot=last.boot, protocol=last.protocol, reason="revoked")
                transport.publish(topic, death.encode())
            transport.publish(topic, b"", retain=True)


def purge(directory: Directory, fleet: str, *, port: int | None = None) -> list[str]:
    """Clear all that is retained of a fleet; the topics that were cleared."""
    with _trusted(directory, check_fleet(fleet), port) as transport:
        return clear(transport, Topics(fleet).root)


@contextmanager
def _trusted(directory: Directory, fleet: str, port: int | None) -> Iterator[MqttTransport]:
    """An identity that may write every leaf of a fleet, which nobody else may; it exists for as long as this."""
    name = f"purge-{fleet}"
    directory.write_acl(f"\n# for as long as a purge takes\nuser {name}\ntopic readwrite {Topics(fleet).root}/#\n")
    try:
        if not reload(directory):
            raise NotRunning("the broker does not run on this machine: run this on its host")
        with _as(directory, name, port) as transport:
            yield transport
    finally:
        directory.write_acl()
        reload(directory)


def clear(transport: Transport, root: str) -> list[str]:
    """Clear all that is retained below `root`, with rights to do so."""
    events = _connect(transport)
    transport.subscribe(f"{root}/#")
    cleared = []
    for event in _retained(events):
        transport.publish(event.topic, b"", retain=True)
        cleared.append(event.topic)
    return cleared


def _retained(events: queue.SimpleQueue[Event]) -> Iterator[Received]:
    """What the broker had retained, until it has been silent for a while."""
    while True:
        try:
            event = take(events, SILENCE)
        except queue.Empty:
            return
        if isinstance(event, Stopped):
            raise NotRunning(event.reason)
        if isinstance(event, Received) and event.retained:
            yield event


def look(directory: Directory, *, port: int | None = None) -> list[Finding]:
    """What the running broker takes and refuses, seen from outside."""
    where = _address(directory, port)
    try:
        socket.create_connection(where, timeout=PATIENCE).close()
    except OSError as error:
        todo = f"relief broker up {directory.path}, or start its service"
        return [Finding("running", None, f"nothing accepts on {where[0]}:{where[1]} ({error})", todo)]
    return [*_lets_in(directory, port), *_keeps_out(directory, where)]


def _lets_in(directory: Directory, port: int | None) -> Iterator[Finding]:
    for one in list(directory.record.identities.values())[:1]:
        files = directory.folder(one)
        transport = MqttTransport(_config(directory, files, port), one.name)
        # A handshake is enough: taking the identity would throw out whoever uses it.
        context = tls.client_context(transport._config)
        assert context is not None
        host, number = _address(directory, port)
        try:
            plain = socket.create_connection((host, number), timeout=PATIENCE)
            with plain, context.wrap_socket(plain, server_hostname=host) as wrapped:
                yield Finding("running", True, f"{host}:{number} answers with {wrapped.version()}")
        except OSError as error:
            told, _ = tls.explain(transport._config, str(error))
            yield Finding("running", False, told or str(error), f"relief broker renew {directory.path}")


def _keeps_out(directory: Directory, where: tuple[str, int]) -> Iterator[Finding]:
    hello = b"\x10\x10\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x03me!"
    for what, context in (("plain text", None), ("nobody's certificate", _nobody(directory))):
        taken = _answered(where, context, hello)
        told = f"{what} is {'TAKEN' if taken else 'refused'}"
        yield Finding(
            "closed", not taken, told, f"compare mosquitto.conf with {directory.path}/broker" if taken else ""
        )


def _answered(where: tuple[str, int], context: ssl.SSLContext | None, hello: bytes) -> bool:
    try:
        with socket.create_connection(where, timeout=PATIENCE) as plain:
            plain.settimeout(1.0)
            if context is None:
                plain.sendall(hello)
                return plain.recv(4)[:1] == b"\x20"
            with context.wrap_socket(plain, server_hostname=where[0]) as wrapped:
                wrapped.sendall(hello)
                return wrapped.recv(4)[:1] == b"\x20"
    except OSError:
        return False


def _nobody(directory: Directory) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(directory.path / "ca" / "ca.pem")
    return context


def _address(directory: Directory, port: int | None) -> tuple[str, int]:
    local = pid(directory) is not None
    return ("127.0.0.1" if local else directory.record.hosts[0]), port or directory.record.port


def _config(directory: Directory, files: Path, port: int | None) -> BrokerConfig:
    host, number = _address(directory, port)
    return BrokerConfig(
        host=host, port=number, ca=directory.path / "ca" / "ca.pem", cert=files / "cert.pem", key=files / "key.pem"
    )


@contextmanager
def _as(directory: Directory, name: str, port: int | None) -> Iterator[MqttTransport]:
    """A transport of the identity `name`, on a certificate that exists for as long as this."""
    issued = directory.passing(name)
    with tempfile.TemporaryDirectory(prefix="relief-passing-") as folder:
        files = Path(folder)
        (files / "cert.pem").write_bytes(issued.cert)
        (files / "key.pem").touch(mode=0o600)
        (files / "key.pem").write_bytes(issued.key)
        transport = MqttTransport(_config(directory, files, port), name)
        try:
            yield transport
        finally:
            transport.close()


def _connect(transport: Transport) -> queue.SimpleQueue[Event]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    transport.open(events.put)
    try:
        event = take(events, PATIENCE)
    except queue.Empty:
        raise NotRunning(f"the broker did not answer within {PATIENCE:g} s") from None
    if not isinstance(event, Connected):
        raise NotRunning(getattr(event, "reason", "the broker did not let us in"))
    return events
