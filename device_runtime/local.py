"""A local socket by which a running device can be asked how it is: one line of JSON in, one out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 3.0  # seconds: an answer comes from the runtime's own loop, so silence means that it hangs
LONGEST = 65536  # bytes of a question or an answer
ROOM = 100  # bytes of a socket's path that every system takes


def socket_path(folder: Path) -> Path:
    """Where the device whose state is in `folder` listens; elsewhere where that path is too long for a socket."""
    path = folder.absolute() / "agent.sock"
    if len(os.fsencode(path)) <= ROOM:
        return path
    short = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"relief-{os.getuid()}-{short}.sock"


class AlreadyRunning(Exception):
    """Two processes of one device would take each other's place at the broker for ever."""


class Asked:
    """A question that waits for the runtime's loop."""

    def __init__(self, question: dict[str, Any]) -> None:
        self.question = question
        self._answer: dict[str, Any] = {}
        self._there = threading.Event()

    def answer(self, values: dict[str, Any]) -> None:
        self._answer = values
        self._there.set()

    def wait(self) -> dict[str, Any] | None:
        """The answer, or None where none came in time."""
        return self._answer if self._there.wait(PATIENCE) else None


class LocalSocket:
    """Listens in a thread that sleeps until somebody asks; `ask` hands the question to the loop and only enqueues."""

    def __init__(self, folder: Path, ask: Callable[[Asked], None]) -> None:
        self.path, self._ask = socket_path(folder), ask
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> str:
        """Start to listen; why that is not possible, or nothing. AlreadyRunning where somebody else answers there."""
        if ask_at(self.path, {}) is not None:
            raise AlreadyRunning(f"another process of this device is running already: it answers at {self.path}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(str(self.path))
            self.path.chmod(0o600)
            self._socket.listen(4)
        except OSError as error:
            return f"{self.path}: {error.strerror or error}"
        self._thread = threading.Thread(target=self._run, name="local", daemon=True)
        self._thread.start()
        return ""

    def close(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        if self._thread:
            self._thread.join(PATIENCE)
        self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        assert self._socket is not None
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError, ValueError):
                peer.settimeout(PATIENCE)
                asked = Asked(json.loads(_line(peer)))
                self._ask(asked)
                answer = asked.wait()
                if answer is not None:
                    peer.sendall(json.dumps(answer).encode() + b"\n")


def ask(folder: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """Ask the running device whose state is in `folder`; None where none runs there or its loop hangs."""
    return ask_at(socket_path(folder), question)


def ask_at(path: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """The same by the socket's path."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(PATIENCE + 1.0)
            link.connect(str(path))
            link.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(_line(link))
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _line(link: socket.socket) -> bytes:
    """Bytes up to the end of a line. ValueError where it is too long or never ends."""
    found = b""
    while b"\n" not in found:
        more = link.recv(4096)
        if not more or len(found) + len(more) > LONGEST:
            raise ValueError("no whole line")
        found += more
    return found.partition(b"\n")[0]
