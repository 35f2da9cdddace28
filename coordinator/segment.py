"""One file of the journal: records one behind the other, each with its own checksums.

    marker 8 | position u64 | header size u32 | body size u64 | header crc u32 | body crc u32 | crc32 of these
    header: msgpack of [kind, header]
    body: raw bytes

A segment is named `<first position>-<marker>.log`. The marker is random, so a device cannot forge a record within its
update's body; and it stands in the name, where no damage inside the file reaches it.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

PRELUDE = struct.Struct("<8sQIQII")
CHECK = struct.Struct("<I")
FIXED = PRELUDE.size + CHECK.size
STEP = 1024 * 1024  # bytes read at a time while checking or copying
_VECTORS = 512  # buffers a single writev takes; IOV_MAX is 1024 on Linux
_datasync = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync


@dataclass(frozen=True)
class Draft:
    """A record that is not in a file yet."""

    position: int
    kind: str
    header: dict[str, Any]
    packed: bytes  # msgpack of [kind, header]
    body: bytes
    body_crc: int

    @property
    def size(self) -> int:
        return FIXED + len(self.packed) + len(self.body)


@dataclass(frozen=True)
class Place:
    """Where a record lies: `offset` of its first byte in `segment`."""

    segment: Segment
    offset: int
    header_size: int
    body_size: int
    body_crc: int

    @property
    def size(self) -> int:
        return FIXED + self.header_size + self.body_size

    def head(self) -> tuple[str, dict[str, Any]]:
        """(kind, header), read from the file."""
        packed = os.pread(self.segment.fd, self.header_size, self.offset + FIXED)
        kind, header = msgpack.unpackb(packed, strict_map_key=False)
        return kind, header

    def read(self, start: int, size: int | None) -> bytes:
        """A slice of the body; OSError where the file is shorter than it was."""
        rest = max(0, self.body_size - start)
        wanted = rest if size is None else min(size, rest)
        found = os.pread(self.segment.fd, wanted, self.offset + FIXED + self.header_size + start)
        while 0 < len(found) < wanted:  # a single pread gives at most 2 GiB
            more = os.pread(
                self.segment.fd, wanted - len(found), self.offset + FIXED + self.header_size + start + len(found)
            )
            if not more:
                break
            found += more
        if len(found) != wanted:
            raise OSError(f"{self.segment.path}: ends within the record at {self.offset:,}; was the file changed?")
        return found

    def sound(self) -> bool:
        """Whether the body has the checksum it was written with."""
        return self.segment.crc(self.offset + FIXED + self.header_size, self.body_size) == self.body_crc


@dataclass(frozen=True)
class Damage:
    """`size` bytes at `offset` of `file` that are no whole records; `after` is the last whole position before them."""

    file: str
    offset: int
    size: int
    after: int
    cut: bool  # cut off at the end, else left in place with whole records behind it

    def __str__(self) -> str:
        done = "cut off" if self.cut else "skipped"
        return f"{self.file}: {self.size:,} bytes at {self.offset:,}, behind record {self.after}, damaged and {done}"


class Segment:
    """An open file of records. Appending is the only change besides cutting its end off."""

    def __init__(self, path: Path, fd: int, first: int, marker: bytes) -> None:
        self.path, self.fd, self.first, self.marker = path, fd, first, marker
        self.size = os.fstat(fd).st_size

    @classmethod
    def create(cls, directory: Path, first: int, *, marker: bytes = b"", suffix: str = ".log") -> Segment:
        """A new empty segment whose records begin at position `first`; with `marker` one that is to replace another."""
        marker = marker or secrets.token_bytes(8)
        path = directory / f"{first:016d}-{marker.hex()}{suffix}"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        segment = cls(path, os.open(path, flags, 0o600), first, marker)
        sync_directory(directory)
        return segment

    @classmethod
    def open(cls, path: Path) -> Segment:
        first, marker = path.name.split(".")[0].split("-")
        return cls(path, os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC), int(first), bytes.fromhex(marker))

    def close(self) -> None:
        os.close(self.fd)

    def append(self, batch: Sequence[Draft]) -> list[Place]:
        """Write and fdatasync the batch; on OSError the file ends where it did before."""
        buffers: list[bytes | memoryview] = []
        places, offset = [], self.size
        for draft in batch:
            buffers += (self._prelude(draft), draft.packed, draft.body)
            places.append(Place(self, offset, len(draft.packed), len(draft.body), draft.body_crc))
            offset += draft.size
        try:
            _write_all(self.fd, buffers)
            _datasync(self.fd)
        except OSError:
            # After a failed fdatasync the kernel may take the pages for clean: only writing them again is safe.
            os.ftruncate(self.fd, self.size)
            raise
        self.size = offset
        return places

    def _prelude(self, draft: Draft) -> bytes:
        fixed = PRELUDE.pack(
            self.marker, draft.position, len(draft.packed), len(draft.body), zlib.crc32(draft.packed), draft.body_crc
        )
        return fixed + CHECK.pack(zlib.crc32(fixed))

    def cut(self, size: int) -> None:
        """Cut the file off at `size`, durably."""
        os.ftruncate(self.fd, size)
        os.fsync(self.fd)
        self.size = size

    # -- recovery --------------------------------------------------------------------------------------------

    def scan(self) -> Iterator[tuple[int, Place]]:
        """(position, place) of every whole record, reading each byte once; what is damaged is passed over."""
        offset = 0
        while offset < self.size:
            found = self._parse(offset)
            if found is None:
                offset = self._next_marker(offset + 1)
                continue
            position, place, header_crc = found
            if self.crc(offset + FIXED, place.header_size) == header_crc and place.sound():
                yield position, place
            offset += place.size

    def _parse(self, offset: int) -> tuple[int, Place, int] | None:
        raw = os.pread(self.fd, FIXED, offset)
        if len(raw) < FIXED or zlib.crc32(raw[: PRELUDE.size]) != CHECK.unpack_from(raw, PRELUDE.size)[0]:
            return None
        marker, position, header_size, body_size, header_crc, body_crc = PRELUDE.unpack_from(raw)
        place = Place(self, offset, header_size, body_size, body_crc)
        if marker != self.marker or offset + place.size > self.size:
            return None
        return position, place, header_crc

    def _next_marker(self, offset: int) -> int:
        """Offset of the next marker at or behind `offset`, or the file's size."""
        while offset < self.size:
            window = os.pread(self.fd, STEP, offset)
            at = window.find(self.marker)
            if at >= 0:
                return offset + at
            if len(window) <= len(self.marker):
                break
            offset += len(window) - len(self.marker) + 1
        return self.size

    def crc(self, offset: int, size: int) -> int:
        """crc32 of a stretch, a step at a time; of what is there if the file ends early."""
        value = 0
        while size > 0:
            step = os.pread(self.fd, min(STEP, size), offset)
            if not step:
                break
            value = zlib.crc32(step, value)
            offset, size = offset + len(step), size - len(step)
        return value


def sync_directory(path: Path) -> None:
    """Make created, renamed and removed names in `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, buffers: list[bytes | memoryview]) -> None:
    at = 0
    while at < len(buffers):
        written = os.writev(fd, buffers[at : at + _VECTORS])
        while at < len(buffers) and written >= len(buffers[at]):
            written -= len(buffers[at])
            at += 1
        if written:
            buffers[at] = memoryview(buffers[at])[written:]
