"""Large payloads in pieces: split on one side, put together in any order and number of copies on the other.

A chunk stays below 112 KiB (above 128 KiB glibc serves the receive buffer by mmap, 8 times the CPU per MB) and below
what the broker takes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from protocol.errors import Malformed, TooLarge
from protocol.messages import MAX_MESSAGE, Chunk

CHUNK = 112 * 1024  # bytes of data at most
ENVELOPE = 4096  # bytes left for topic, properties and the chunk's own fields


def chunk_size(max_payload: int) -> int:
    """Bytes of data a chunk may carry where the broker takes packets of `max_payload` bytes."""
    return max(1, min(CHUNK, max_payload - ENVELOPE))


def count(length: int, size: int = CHUNK) -> int:
    """How many chunks of `size` bytes a payload of `length` bytes has."""
    return max(1, -(-length // size))


def split(id: str, whole: bytes | memoryview, size: int = CHUNK) -> list[Chunk]:
    """Cut `whole` into chunks of at most `size` bytes, at least one. No copies: the chunks view `whole`."""
    view, digest = memoryview(whole), hashlib.sha256(whole).digest()
    many = count(len(view), size)
    return [Chunk(id=id, index=k, count=many, digest=digest, data=view[k * size : (k + 1) * size]) for k in range(many)]


@dataclass
class _Partial:
    count: int
    digest: bytes
    parts: dict[int, bytes] = field(default_factory=dict)
    size: int = 0


class Reassembly:
    """Collects the chunks of up to `wholes` unfinished payloads of one sender; the oldest is dropped beyond that.

    Chunks with the same id and another digest or count begin anew: a sender that changed its mind wins over its past.
    """

    def __init__(self, *, wholes: int = 2, max_bytes: int = MAX_MESSAGE) -> None:
        self._wholes, self._max_bytes = wholes, max_bytes
        self._partial: OrderedDict[str, _Partial] = OrderedDict()

    def add(self, chunk: Chunk) -> bytes | None:
        """The whole payload once its last chunk is here, else None. Raises Malformed or TooLarge."""
        if chunk.index >= chunk.count:
            raise Malformed("Chunk", f"index {chunk.index} of {chunk.count}")
        if chunk.count == 1:
            self._partial.pop(chunk.id, None)
            return _checked(bytes(chunk.data), chunk.digest)
        now = self._partial.get(chunk.id)
        if now is None or (now.count, now.digest) != (chunk.count, chunk.digest):
            now = self._partial[chunk.id] = _Partial(chunk.count, chunk.digest)
            while len(self._partial) > self._wholes:
                self._partial.popitem(last=False)
        if chunk.index in now.parts:
            return None
        now.parts[chunk.index] = bytes(chunk.data)
        now.size += len(chunk.data)
        if now.size > self._max_bytes:
            del self._partial[chunk.id]
            raise TooLarge("chunks of " + chunk.id[:40], now.size, self._max_bytes)
        if len(now.parts) < now.count:
            return None
        del self._partial[chunk.id]
        return _checked(b"".join(now.parts[k] for k in range(now.count)), now.digest)

    def missing(self, id: str, count: int | None = None) -> list[int]:
        """Indices still needed of an unfinished payload; empty if nothing of it, cut into `count`, is here."""
        now = self._partial.get(id)
        if now is None or (count is not None and count != now.count):
            return []
        return [k for k in range(now.count) if k not in now.parts]


def _checked(whole: bytes, digest: bytes) -> bytes:
    if hashlib.sha256(whole).digest() != digest:
        raise Malformed("Chunk", "the parts do not have the digest they announced")
    return whole
