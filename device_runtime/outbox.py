"""Updates on disk until the coordinator has answered them, and telemetry in memory until there is a connection.

A file an update: magic, crc32 of what follows, then msgpack of its ids and its bytes. Written beside and renamed, so
after a kill or a full disk a file is whole or is not there. What cannot be written stays in memory. Most updates are
answered within a second: only those that stay are synced (`secure`), which spares flash and time, and a power cut costs
at most the training since then.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path

import msgpack

MAGIC = b"relief-outbox-2\n"
CHECK = struct.Struct("<I")
SUFFIX = ".update"
TELEMETRY = 1 << 20  # bytes of telemetry at most, since it is kept in memory


@dataclass(frozen=True)
class Entry:
    """An update: its id, the assignment it answers, its bytes on disk (or in memory)."""

    update: str
    assignment: str
    order: int
    size: int


class Outbox:
    """What one device has not got rid of, at most `max_bytes`: the oldest telemetry gives way first, updates last.

    Updates are files in `folder`. Telemetry never touches the disk: flash wears out, and it is only news while new.

    problem    what keeps updates from the disk just now, for the log and for checks; empty where all is well
    torn       files that were not whole when the outbox was opened, removed since
    dropped, forgotten    updates and telemetry messages that gave way
    """

    def __init__(self, folder: Path, max_bytes: int = 256 * 1024 * 1024) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.problem = ""
        self.torn = 0
        self.dropped = self.forgotten = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._memory: dict[str, bytes] = {}
        self._newest: tuple[str, bytes] = ("", b"")  # it is sent in a moment, so that nobody need read it again
        self._unsynced: set[str] = set()
        self._telemetry: deque[bytes] = deque()
        self._telemetry_size = 0
        self._open()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all updates and of the telemetry."""
        return sum(e.size for e in self._entries.values()) + self._telemetry_size

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is here, oldest first."""
        return tuple(self._entries.values())

    def put(self, update: str, assignment: str, body: bytes) -> list[str]:
        """Keep an update; the ids of those that had to give way for it. A disk that fails is told by `problem`."""
        if update in self._entries:
            return []
        order = max((e.order for e in self._entries.values()), default=0) + 1
        self._entries[update] = Entry(update, assignment, order, len(body))
        self._memory[update] = body
        self._newest = update, body
        gone = []
        self._make_room(self.max_bytes)
        while self.size > self.max_bytes and len(self._entries) > 1:
            oldest = next(iter(self._entries))
            self.remove(oldest)
            gone.append(oldest)
        self.dropped += len(gone)
        self.flush()
        return gone

    def remember(self, telemetry: bytes) -> None:
        """Keep a telemetry message for when there is a connection again."""
        self._telemetry.append(telemetry)
        self._telemetry_size += len(telemetry)
        while self._telemetry_size > TELEMETRY:
            self._forget_oldest()
        self._make_room(self.max_bytes)

    def recall(self) -> list[bytes]:
        """The telemetry that was kept, oldest first; it is not kept any longer."""
        kept = list(self._telemetry)
        self._telemetry.clear()
        self._telemetry_size = 0
        return kept

    def _make_room(self, limit: int) -> None:
        while self._telemetry and self.size > limit:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._telemetry_size -= len(self._telemetry.popleft())
        self.forgotten += 1

    def flush(self) -> None:
        """Write what is only in memory yet."""
        for update in list(self._memory):
            try:
                self._write(self._entries[update], self._memory[update])
            except OSError as error:
                self.problem = (
                    f"outbox {self.folder}: {error.strerror or error}; {len(self._memory)} updates are kept in memory "
                    "only and would be lost if this process ended: make room or correct the folder's rights"
                )
                return
            del self._memory[update]
        self.problem = ""

    def secure(self) -> None:
        """Write what found no room before, and make all durable; whoever owns the outbox calls it now and then."""
        if self._memory:
            self.flush()
        if not self._unsynced:
            return
        try:
            for update in sorted(self._unsynced):
                _sync(self._path(update))
            _sync(self.folder)  # their names
        except OSError as error:
            self.problem = f"outbox {self.folder}: {error.strerror or error}: a power cut now would cost updates"
            return
        self._unsynced.clear()
        if not self._memory:
            self.problem = ""

    def body(self, update: str) -> bytes | None:
        """An update's bytes, or None where it is not here or its file was damaged meanwhile."""
        if update in self._memory:
            return self._memory[update]
        if update == self._newest[0]:
            return self._newest[1]
        if update not in self._entries:
            return None
        found = _read(self._path(update))
        if found is None:
            self.torn += 1
            self.remove(update)
            return None
        return found[1]

    def length(self, update: str) -> int | None:
        """Bytes of an update, or None where it is not here."""
        entry = self._entries.get(update)
        return entry.size if entry else None

    def remove(self, update: str) -> None:
        """The update was answered, or gives way."""
        if self._entries.pop(update, None) is None:
            return
        self._unsynced.discard(update)
        if update == self._newest[0]:
            self._newest = "", b""
        if self._memory.pop(update, None) is None:
            with contextlib.suppress(OSError):
                self._path(update).unlink()

    # -- files -----------------------------------------------------------------------------------

    def _path(self, update: str) -> Path:
        return self.folder / (hashlib.sha256(update.encode()).hexdigest()[:32] + SUFFIX)

    def _open(self) -> None:
        found = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob("*.tmp"):
                unfinished.unlink()
            paths = list(self.folder.glob("*" + SUFFIX))
        except OSError as error:
            self.problem = f"outbox {self.folder}: {error.strerror or error}: updates are kept in memory only"
            return
        for path in paths:
            whole = _read(path)
            if whole is None:
                self.torn += 1
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                found.append(whole[0])
        for entry in sorted(found, key=lambda e: e.order):
            self._entries[entry.update] = entry
            self._unsynced.add(entry.update)  # whoever wrote it may have been killed before it was

    def _write(self, entry: Entry, body: bytes) -> None:
        content = msgpack.packb([entry.update, entry.assignment, entry.order, body])
        whole = b"".join((MAGIC, CHECK.pack(zlib.crc32(content)), content))
        path = self._path(entry.update)
        beside = path.with_suffix(".tmp")
        try:
            try:
                beside.write_bytes(whole)
            except FileNotFoundError:  # the folder could not be made before, or somebody has tidied up
                self.folder.mkdir(parents=True, exist_ok=True)
                beside.write_bytes(whole)
            beside.replace(path)
            self._unsynced.add(entry.update)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise


def _read(path: Path) -> tuple[Entry, bytes] | None:
    """An update's file, or None where it is not whole."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + CHECK.size
    if (
        len(raw) <= start
        or raw[: len(MAGIC)] != MAGIC
        or CHECK.pack(zlib.crc32(raw[start:])) != raw[len(MAGIC) : start]
    ):
        return None
    update, assignment, order, body = msgpack.unpackb(raw[start:])
    return Entry(update, assignment, order, len(body)), body


def _sync(path: Path) -> None:
    """Make a file durable, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
