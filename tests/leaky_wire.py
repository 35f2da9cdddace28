"""A wire between devices and their broker that can be cut: a TCP relay on loopback."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from types import TracebackType


class Wire:
    """Relays its own port to `port`. `cut` drops every connection and refuses new ones for a while."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0  # connections that were dropped
        self._until = 0.0
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._over = False
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._waker.send(b"x")
        self._thread.join()

    def cut(self, seconds: float) -> None:
        """Returns when the wire is whole again."""
        self._until = time.monotonic() + seconds
        self._waker.send(b"x")
        time.sleep(seconds)

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._wake, selectors.EVENT_READ)
            while not self._over:
                for key, _ in ready.select():
                    end = key.fileobj
                    assert isinstance(end, socket.socket)
                    if end is self._wake:
                        self._wake.recv(16)
                        self._drop_all(ready)
                    elif end is self._listener:
                        self._accept(ready)
                    elif end in self._pairs:
                        self._relay(ready, end)
            self._drop_all(ready)
        for end in (self._listener, self._wake, self._waker):
            end.close()

    def _accept(self, ready: selectors.BaseSelector) -> None:
        near, _ = self._listener.accept()
        if time.monotonic() < self._until:
            near.close()
            return
        try:
            far = socket.create_connection(self._target)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            ready.register(one, selectors.EVENT_READ)

    def _relay(self, ready: selectors.BaseSelector, end: socket.socket) -> None:
        try:
            data = end.recv(1 << 16)
            if data:
                self._pairs[end].sendall(data)
                return
        except OSError:
            pass
        self._drop(ready, end)

    def _drop(self, ready: selectors.BaseSelector, end: socket.socket) -> None:
        other = self._pairs.pop(end, None)
        if other is None:
            return
        self._pairs.pop(other, None)
        for one in (end, other):
            with contextlib.suppress(KeyError, ValueError):
                ready.unregister(one)
            one.close()

    def _drop_all(self, ready: selectors.BaseSelector) -> None:
        self.cuts += len(self._pairs) // 2
        for end in list(self._pairs):
            self._drop(ready, end)
