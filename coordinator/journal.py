"""The journal: records appended to segment files, durable once `sync` returns, in the order of their appending.

A journal is a directory of segments (coordinator.segment). Recovery reads every byte once: what is damaged at the end
is cut off, what is damaged with whole records behind it is skipped, and either is said in `recovered`. Positions are
sequence numbers, kept for good: compaction leaves gaps and never renumbers.

A record that names others (a commit) is appended after a `sync` of those: then a commit that can be read stands
for updates that had reached the disk.

JournalError
 +-- JournalFull     no space: nothing of the batch is in the file, all of it is still buffered; `sync` again later
 +-- JournalLocked   another process has the journal open
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from coordinator.compaction import copied, runs
from coordinator.segment import Damage, Draft, Place, Segment, sync_directory

SEGMENT = 64 * 1024 * 1024  # bytes after which the next batch begins a new segment
WHOLE = 1024 * 1024  # bytes of a segment worth a file of its own at a compaction: the next need not copy it
MAX_HEADER = 16 * 1024 * 1024
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JournalError(Exception):
    """The journal cannot do what was asked; the text says where and what to do."""


class JournalFull(JournalError):
    """No space for `size` bytes in `path`."""

    def __init__(self, path: Path, size: int, reason: str) -> None:
        super().__init__(f"journal {path}: no space for {size:,} bytes ({reason}); free some and it goes on")
        self.path, self.size = path, size


class JournalLocked(JournalError):
    """Another process writes to `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"journal {path}: another process has it open; two coordinators cannot share one journal")


@dataclass(frozen=True)
class Record:
    """What is known of a record without reading its body."""

    position: int
    kind: str
    header: dict[str, Any]
    body_size: int


@dataclass(frozen=True)
class Recovered:
    """What opening found; its text goes to the log."""

    records: int = 0
    damages: tuple[Damage, ...] = ()

    @property
    def whole(self) -> bool:
        return not self.damages

    def __str__(self) -> str:
        return "; ".join([f"{self.records:,} records", *map(str, self.damages)])


class Journal:
    """One writing process; every method may be called from any of its threads.

    `sync` and `compact` may take long: `append` and `read` go on meanwhile.
    """

    def __init__(self, path: Path, lock: int, segment_bytes: int) -> None:
        self.path, self.recovered = path, Recovered()
        self._lock_fd, self._segment_bytes = lock, segment_bytes
        self._segments: list[Segment] = []
        self._index: dict[int, Place] = {}
        self._positions: list[int] = []  # the index's keys, ascending
        self._drafts: dict[int, Draft] = {}
        self._next = 1
        self._state = threading.RLock()  # guards the fields above
        self._writing = threading.Lock()  # one sync or roll at a time
        self._compacting = threading.Lock()

    # -- opening and closing ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, *, segment_bytes: int = SEGMENT) -> Journal:
        """Open or create the journal in directory `path`, recovering what a crash or a bad disk left.

        Raises JournalLocked, or OSError where the directory cannot be used.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise JournalLocked(path) from None
        journal = cls(path, lock, segment_bytes)
        try:
            journal._recover()
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Close the files. What was appended and not synced is dropped, as by a crash."""
        with self._writing, self._state:
            for segment in self._segments:
                segment.close()
            self._segments.clear()
            self._index.clear()
            self._positions.clear()
            self._drafts.clear()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
            self._lock_fd = -1

    def _recover(self) -> None:
        for left in self.path.glob("*.tmp"):
            left.unlink()
        damages: list[Damage] = []
        files = sorted(self.path.glob("*-*.log"))
        for n, file in enumerate(files):
            segment = Segment.open(file)
            self._segments.append(segment)
            damages += self._take_in(segment, last=n == len(files) - 1)
        if not self._segments:
            self._roll()
        self._next = max([segment.first for segment in self._segments] + [self._last() + 1])
        self.recovered = Recovered(len(self._positions), tuple(damages))

    def _take_in(self, segment: Segment, *, last: bool) -> list[Damage]:
        """Index the segment's whole records; cut a damaged end off where no segment follows."""
        damages = []
        whole = 0  # where the last whole record ends
        for position, place in segment.scan():
            if place.offset > whole:
                damages.append(Damage(segment.path.name, whole, place.offset - whole, self._last(), cut=False))
            whole = place.offset + place.size
            # A crash while segments were merged leaves records twice: the first stands.
            if position > self._last():
                self._index[position] = place
                self._positions.append(position)
        if whole < segment.size:
            damages.append(Damage(segment.path.name, whole, segment.size - whole, self._last(), cut=last))
            if last:
                segment.cut(whole)
        return damages

    def _last(self) -> int:
        return self._positions[-1] if self._positions else 0

    # -- writing ---------------------------------------------------------------------------------------------

    def append(self, kind: str, header: dict[str, Any], body: bytes | memoryview = b"") -> int:
        """Buffer a record and return its position. It can be read at once and is durable after the next `sync`.

        `header` holds what msgpack takes: TypeError for other things, ValueError above 16 MiB of it.
        """
        packed: bytes = msgpack.packb([kind, header])
        if len(packed) > MAX_HEADER:
            raise ValueError(f"journal record {kind!r}: a header of {len(packed):,} bytes, at most {MAX_HEADER:,} fit")
        owned = bytes(body)  # the caller's buffer may change before it is written
        crc = zlib.crc32(owned)
        with self._state:
            self._check_open()
            position = self._next
            self._next += 1
            self._drafts[position] = Draft(position, kind, header, packed, owned, crc)
        return position

    @property
    def unsynced(self) -> int:
        """Bytes appended and not durable yet."""
        with self._state:
            return sum(draft.size for draft in self._drafts.values())

    @property
    def size(self) -> int:
        """Bytes in the segment files."""
        with self._state:
            return sum(segment.size for segment in self._segments)

    def sync(self) -> None:
        """Make all that was appended so far durable: one write, one fdatasync.

        Raises JournalFull where there is no space and OSError where the disk fails. In both cases the file ends where
        it did before, the batch stays buffered, and the next `sync` tries it again.
        """
        with self._writing:
            with self._state:
                self._check_open()
                batch = list(self._drafts.values())
            if not batch:
                return
            try:
                if self._segments[-1].size >= self._segment_bytes:
                    self._roll()
                places = self._segments[-1].append(batch)
            except OSError as error:
                if error.errno in _NO_SPACE:
                    size = sum(draft.size for draft in batch)
                    raise JournalFull(self.path, size, error.strerror or "full") from None
                raise
            with self._state:
                for draft, place in zip(batch, places, strict=True):
                    self._index[draft.position] = place
                    self._positions.append(draft.position)
                    del self._drafts[draft.position]

    def _roll(self) -> None:
        """Begin a new segment. Called with `_writing` held."""
        with self._state:
            first = min(self._drafts, default=self._next)
            self._segments.append(Segment.create(self.path, first))

    def _check_open(self) -> None:
        if self._lock_fd < 0:
            raise JournalError(f"journal {self.path} is closed")

    # -- reading ---------------------------------------------------------------------------------------------

    def records(self, start: int = 0) -> Iterator[Record]:
        """Records from position `start` on, those not synced yet included; bodies are not read."""
        with self._state:
            positions = [*self._positions[bisect_left(self._positions, start) :], *self._drafts]
        for position in positions:
            if position >= start and (record := self._record(position)) is not None:
                yield record

    def _record(self, position: int) -> Record | None:
        """None where compaction took it meanwhile."""
        with self._state:
            if draft := self._drafts.get(position):
                return Record(position, draft.kind, draft.header, len(draft.body))
            place = self._index.get(position)
            if place is None:
                return None
            kind, header = place.head()
        return Record(position, kind, header, place.body_size)

    def read(self, position: int, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes of a record's body from `start`, or all that follow. KeyError if there is no such record."""
        with self._state:
            if draft := self._drafts.get(position):
                return draft.body[start:] if size is None else draft.body[start : start + size]
            return self._place(position).read(start, size)

    def _place(self, position: int) -> Place:
        try:
            return self._index[position]
        except KeyError:
            raise KeyError(f"journal {self.path} has no record {position}") from None

    # -- compaction ------------------------------------------------------------------------------------------

    def compact(self, keep: Callable[[Record], bool]) -> int:
        """Drop the durable records for which `keep` is false and return the bytes freed. Positions stay as they are.

        Kept records are copied aside and put in place by a rename, so a crash leaves the old or the new; appending,
        syncing and reading go on meanwhile. JournalFull where the copy finds no space: nothing was lost, and segments
        of which nothing is kept are gone already.
        """
        with self._compacting:
            before = self.size
            self._seal(keep)
            with self._state:
                sealed = self._segments[:-1]
                held: dict[Segment, list[int]] = {segment: [] for segment in sealed}
                total = dict.fromkeys(sealed, 0)
                placed = [(p, self._index[p].segment) for p in self._positions]
            for position, segment in placed:
                record = self._record(position) if segment in held else None
                if record is not None:
                    total[segment] += 1
                    if keep(record):
                        held[segment].append(position)
            for run in runs(sealed, held, total, self._segment_bytes):
                self._merge(run, [position for segment in run for position in held[segment]])
            return max(0, before - self.size)

    def _seal(self, keep: Callable[[Record], bool]) -> None:
        """Begin a new segment where the last holds a record to drop, or enough that is better dropped as a whole."""
        with self._writing:
            last = self._segments[-1]
            worn = last.size >= WHOLE or any(
                not keep(record) for record in self.records(last.first) if record.position in self._index
            )
            if worn:
                try:
                    self._roll()
                except OSError as error:
                    if error.errno not in _NO_SPACE:
                        raise

    def _merge(self, run: list[Segment], positions: list[int]) -> None:
        """Replace the segments of `run` by one with these records, or by none."""
        try:
            kept = [(position, self._index[position]) for position in positions]
            merged, places = copied(run[0], kept) if kept else (None, [])
        except OSError as error:
            run[0].path.with_suffix(".tmp").unlink(missing_ok=True)
            if error.errno in _NO_SPACE:
                raise JournalFull(self.path, sum(s.size for s in run), error.strerror or "full") from None
            raise
        with self._state:
            for gone in run[1:] if merged else run:
                gone.path.unlink()
            sync_directory(self.path)
            for old in run:
                old.close()
            at = self._segments.index(run[0])
            self._segments[at : at + len(run)] = [merged] if merged else []
            for position in [p for p, place in self._index.items() if place.segment in run]:
                del self._index[position]
            self._index.update(zip(positions, places, strict=True))
            self._positions = sorted(self._index)
