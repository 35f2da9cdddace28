"""A socket that is read ahead.

paho takes the first two to five bytes of every packet one by one: a system call each, and the interpreter's lock is
given away and won back around it. TLS has such a buffer of its own.
"""

from __future__ import annotations

import socket

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

AHEAD = 4096  # bytes; what asks for more gets it straight from the system


class Buffered(socket.socket):
    """Takes over `plain`'s connection; `recv` as ever, `pending` says what select cannot see (paho asks for it)."""

    def __init__(self, plain: socket.socket) -> None:
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self._ahead, self._at = b"", 0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Up to `bufsize` bytes; BlockingIOError where none are there, b"" at the end."""
        if flags:
            return super().recv(bufsize, flags)
        if self._at == len(self._ahead):
            if bufsize >= AHEAD:
                return super().recv(bufsize)
            self._ahead, self._at = super().recv(AHEAD), 0
        start = self._at
        self._at = min(start + bufsize, len(self._ahead))
        return self._ahead[start : self._at]

    def pending(self) -> int:
        """Bytes that were read and not asked for yet."""
        return len(self._ahead) - self._at


class BufferedClient(Client):
    """paho's client on such a socket."""

    def _create_socket_connection(self) -> socket.socket:
        plain = super()._create_socket_connection()
        timeout = plain.gettimeout()
        buffered = Buffered(plain)
        buffered.settimeout(timeout)
        return buffered

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """As paho's, and then all packets that were read ahead: one select for many."""
        sock, code = self.socket(), super().loop_read(max_packets)
        while not code and isinstance(sock, Buffered) and sock.pending() and sock is self.socket():
            code = super().loop_read(max_packets)
        return code
