"""A broker that answers as it is told: for answers that no Mosquitto gives on demand."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8


def connack(reason: int = 0, properties: bytes = b"") -> bytes:
    """CONNACK of MQTT 5."""
    body = bytes([0, reason, len(properties)]) + properties
    return bytes([0x20, len(body)]) + body


def disconnect(reason: int) -> bytes:
    """DISCONNECT of MQTT 5."""
    return bytes([0xE0, 1, reason])


@dataclass
class Packet:
    """One packet as it came: type, flags of the first byte, the rest."""

    kind: int
    flags: int
    body: bytes


@dataclass
class ScriptedBroker:
    """Gives `answer(packet, connection)` to every packet; None closes. Connections are counted from 1."""

    answer: Callable[[Packet, int], bytes | None]
    packets: list[Packet] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> ScriptedBroker:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def of(self, kind: int) -> list[Packet]:
        """The packets of one type so far."""
        return [packet for packet in list(self.packets) if packet.kind == kind]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection, self.connections)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while packet := _read(stream.read):
                    self.packets.append(packet)
                    answer = self.answer(packet, number)
                    if answer is None:
                        return
                    connection.sendall(answer)
            except (OSError, struct.error):
                return


def _read(read: Callable[[int], bytes]) -> Packet | None:
    first = read(1)
    if not first:
        return None
    length = shift = 0
    while True:
        byte = read(1)[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return Packet(first[0] >> 4, first[0] & 15, read(length))
