"""A TCP link of so many bytes a second between a client and a broker, small buffers on both sides; it can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

BUFFER = 8 * 1024  # bytes; a big kernel buffer would make the link look fast at first


class SlowLink:
    """Listens on `port` and passes bytes on to `target`, upwards at `rate` bytes a second.

    up    bytes that came from clients so far
    """

    def __init__(self, target: int, rate: int) -> None:
        self._target, self._rate = target, rate
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._server.bind(("127.0.0.1", 0))
        self._server.listen()
        self.port: int = self._server.getsockname()[1]
        self.up = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> SlowLink:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """End every connection, with whatever is on its way."""
        cut, self._sockets = self._sockets, []
        for sock in cut:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets += [near, far]
            for one, other, rate in ((near, far, self._rate), (far, near, 0)):
                self._threads.append(threading.Thread(target=self._pass, args=(one, other, rate)))
                self._threads[-1].start()

    def _pass(self, one: socket.socket, other: socket.socket, rate: int) -> None:
        due = time.monotonic()
        with contextlib.suppress(OSError):
            while data := one.recv(4096):
                if rate:
                    self.up += len(data)
                    due = max(due, time.monotonic()) + len(data) / rate
                    time.sleep(max(0.0, due - time.monotonic()))
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
