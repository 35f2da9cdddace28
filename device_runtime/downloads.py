"""Blocks on their way down: manifest and chunks become a complete version, or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from models.partition import Vector
from protocol.chunks import Reassembly
from protocol.errors import Malformed
from protocol.messages import Chunk, Manifest

EARLY = 2  # whole versions per block that may wait for their manifest


@dataclass(frozen=True)
class Held:
    """A complete block: its manifest and its bytes, whose digest is the manifest's."""

    manifest: Manifest
    data: bytes

    @property
    def vector(self) -> Vector:
        """The block's values, read-only."""
        values: Vector = np.frombuffer(self.data, dtype=self.manifest.dtype)
        return values


class Downloads:
    """The newest complete version of every block that was asked for.

    A manifest, alone or with the first chunk, says what is wanted; chunks of any other digest are of another version
    and never mixed in. Chunks may come first, twice, or in any order. What is already here under the same digest is not
    needed again.
    """

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self._wanted: dict[str, Manifest] = {}
        self._parts: dict[str, Reassembly] = {}
        self._early: dict[str, dict[bytes, bytes]] = {}  # block -> digest -> whole, where no manifest has come yet

    def needs(self, block: str) -> bool:
        """Whether chunks of `block` must still come."""
        return block not in self.held or block in self._wanted

    def manifest(self, block: str, manifest: Manifest) -> bool:
        """Take note of a version; True if with that the block is complete at it."""
        held = self.held.get(block)
        if held and held.manifest.digest == manifest.digest:
            return self._keep(block, manifest, held.data)
        early = self._early.get(block, {}).get(manifest.digest)
        if early is not None:
            return self._keep(block, manifest, early)
        self._wanted[block] = manifest
        return False

    def chunk(self, block: str, chunk: Chunk) -> bool:
        """Add a chunk; True if it completes the wanted version. Raises Malformed or TooLarge, and nothing changes."""
        said = chunk.manifest
        if said and (said.digest, said.chunks) != (chunk.digest, chunk.count):
            raise Malformed("Chunk", f"block {block[:40]}: the manifest with it is of another version")
        held = self.held.get(block)
        if held and held.manifest.digest == chunk.digest:
            return said is not None and self._keep(block, said, held.data)
        wanted = said or self._wanted.get(block)
        if wanted and wanted.digest == chunk.digest and wanted.chunks != chunk.count:
            raise Malformed("Chunk", f"block {block[:40]}: {chunk.count} chunks, its manifest says {wanted.chunks}")
        whole = self._parts.setdefault(block, Reassembly()).add(chunk)
        if said:
            self._wanted[block] = said
        if whole is None:
            return False
        if wanted and wanted.digest == chunk.digest:
            return self._keep(block, wanted, whole)
        early = self._early.setdefault(block, {})
        early[chunk.digest] = whole  # reassembly has checked that it has this digest
        while len(early) > EARLY:
            del early[next(iter(early))]
        return False

    def forget(self, blocks: Iterable[str]) -> None:
        """Let go of these blocks, and of what was on its way."""
        for block in blocks:
            for kept in (self.held, self._wanted, self._parts, self._early):
                kept.pop(block, None)

    def _keep(self, block: str, manifest: Manifest, data: bytes) -> bool:
        if len(data) != manifest.size or len(data) % np.dtype(manifest.dtype).itemsize:
            reason = f"block {block[:40]}: {len(data)} bytes, its manifest says {manifest.size} of {manifest.dtype}"
            raise Malformed("Manifest", reason)
        self.held[block] = Held(manifest, data)
        self._wanted.pop(block, None)
        self._early.pop(block, None)
        return True
