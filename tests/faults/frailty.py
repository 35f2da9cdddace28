"""Things that break on purpose: a process that dies at its n-th deed, a disk that fills, a write that is torn."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.journal import Journal, JournalFull
from protocol.transport import Transport


class Crash(BaseException):
    """The process is gone. Not an Exception, so that nothing on the way catches it."""


class Fuse:
    """Burns down with every deed (a publish, a write, a sync) of a process and ends it when it is lit."""

    def __init__(self) -> None:
        self.left: int | None = None

    def light(self, deeds: int) -> None:
        self.left = deeds

    def deed(self) -> None:
        """Called before every deed; raises Crash when it is the one that does not happen."""
        if self.left is not None:
            if self.left <= 0:
                self.left = None
                raise Crash
            self.left -= 1


class Disk:
    """Whether there is space, and what a crash may do to bytes that were not synced."""

    def __init__(self, random: random.Random) -> None:
        self.full = False
        self.random = random

    def check(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FrailJournal:
    """A real journal whose process may die before, within or after each of its deeds."""

    def __init__(self, inner: Journal, fuse: Fuse, disk: Disk, synced: Callable[[], None]) -> None:
        self._inner, self._fuse, self._disk, self._synced = inner, fuse, disk, synced

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def append(self, kind: str, header: dict[str, Any], body: bytes | memoryview = b"") -> int:
        self._fuse.deed()
        return self._inner.append(kind, header, body)

    def sync(self) -> None:
        if self._disk.full:
            raise JournalFull(self._inner.path, self._inner.unsynced, "planned")
        file, before = _last_segment(self._inner.path), self._inner.size
        try:
            self._fuse.deed()
        except Crash:
            self._tear(file, before)
            raise
        self._inner.sync()
        self._synced()
        self._fuse.deed()  # written, but nobody was told

    def compact(self, keep: Any) -> int:
        self._fuse.deed()
        freed = self._inner.compact(keep)
        self._fuse.deed()
        return freed

    def _tear(self, file: Path, before: int) -> None:
        """Leave as much of the batch as a crash within the write might: none, a part, part rubbish, or all."""
        draw = self._disk.random
        kind = draw.choice(["none", "cut", "cut", "rubbish", "all"])
        if kind == "none":
            return
        start = file.stat().st_size
        self._inner.sync()
        if kind == "all":
            self._synced()
            return
        grown = _last_segment(self._inner.path)
        if grown != file:
            start = 0
        with grown.open("r+b") as open_file:
            size = grown.stat().st_size
            if kind == "cut":
                open_file.truncate(draw.randint(start, max(start, size - 1)))
            elif size > start:
                open_file.seek(draw.randint(start, size - 1))
                at = open_file.tell()
                byte = open_file.read(1)[0]
                open_file.seek(at)
                open_file.write(bytes([byte ^ (1 << draw.randint(0, 7))]))


class FrailTransport:
    """A transport whose process may die before any of its publishes."""

    def __init__(self, inner: Transport, fuse: Fuse, seen: Callable[[str, bytes, bool], None]) -> None:
        self.identity = inner.identity
        self._inner, self._fuse, self._seen = inner, fuse, seen
        self.open, self.subscribe, self.unsubscribe, self.close = (
            inner.open, inner.subscribe, inner.unsubscribe, inner.close,
        )  # fmt: skip

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry: int | None = None
    ) -> None:
        self._fuse.deed()
        self._seen(topic, payload, retain)
        self._inner.publish(topic, payload, qos=qos, retain=retain, expiry=expiry)


def _last_segment(folder: Path) -> Path:
    return max(folder.glob("*-*.log"))
