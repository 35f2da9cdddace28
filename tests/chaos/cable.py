"""A network cable between one party and the broker, which can be pulled out."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Cable:
    """Passes TCP connections on to `target`. While it is pulled out, connections are dead and new ones are refused."""

    def __init__(self, target: int) -> None:
        self._target, self._out_until, self._closed = target, 0.0, False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def pull(self, seconds: float) -> None:
        """Cut all connections now, and let none through for so long."""
        self._out_until = time.monotonic() + seconds
        self._cut()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._cut()
        self._thread.join(5)

    def _cut(self) -> None:
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                if time.monotonic() < self._out_until:
                    raise OSError("pulled out")
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {near, far}
            pair = _Pair(near, far)
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other, pair), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for sock in (one, other):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if pair.left():
            with self._lock:
                self._sockets -= {one, other}
            one.close()
            other.close()


class _Pair:
    """Two directions; the second to end closes the sockets."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._lock, self._ended = threading.Lock(), 0

    def left(self) -> bool:
        with self._lock:
            self._ended += 1
            return self._ended == 2
