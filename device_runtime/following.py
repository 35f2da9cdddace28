"""Which topics with blocks one connection listens to: the least that brings every new version.

A manifest, retained, says whether a block must be downloaded at all; only then its chunks are subscribed to. A block of
one chunk brings its manifest along from then on, so the manifest's own topic is left again (docs/decisions/0008).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from device_runtime.downloads import Downloads
from device_runtime.events import Action, Subscribe, Unsubscribe
from protocol.messages import Chunk, Manifest
from protocol.topics import Topics

ONLY, ALL = "0", "+"  # chunks to subscribe to; ALL has the manifest with it, which lies beside them


class Following:
    """The subscriptions of the present connection; what comes by them goes into `downloads`."""

    def __init__(self, fleet: Topics, downloads: Downloads) -> None:
        self._fleet, self._downloads = fleet, downloads
        self._chunks: dict[str, str] = {}  # block -> which of its chunks are subscribed to
        self._carried: set[str] = set()  # those of them whose only chunk brings the manifest along

    def begin(self) -> None:
        """A connection was made: nothing is subscribed to yet."""
        self._chunks.clear()
        self._carried.clear()

    def manifest(self, block: str, manifest: Manifest) -> list[Action]:
        """A manifest came on its own topic."""
        complete = self._downloads.manifest(block, manifest)
        follow = [] if complete else self._follow(block, manifest.chunks)
        if block in self._carried:  # all that it says has come before
            follow.append(Unsubscribe((self._fleet.manifest(block),)))
        return follow

    def chunk(self, block: str, chunk: Chunk) -> list[Action]:
        """A chunk came. Raises Malformed or TooLarge, and nothing changes."""
        self._downloads.chunk(block, chunk)
        if not chunk.manifest:
            return []
        follow = self._follow(block, chunk.count)
        if self._chunks.get(block) == ONLY:
            self._carried.add(block)
        return follow

    def again(self, blocks: Sequence[str]) -> tuple[str, ...]:
        """Filters by which the broker sends all that it retains of these blocks, in case something got lost."""
        self.forget(blocks)
        self._chunks.update(dict.fromkeys(blocks, ALL))
        return (*map(self._fleet.manifest, blocks), *(self._fleet.chunk(block, ALL) for block in blocks))

    def forget(self, blocks: Iterable[str]) -> None:
        """These are to be followed from the start when they are heard of again."""
        for block in blocks:
            self._chunks.pop(block, None)
            self._carried.discard(block)

    def _follow(self, block: str, chunks: int) -> list[Action]:
        """Subscribe to a block's chunks; to more of them where it has grown."""
        which = ONLY if chunks == 1 else ALL
        if self._chunks.get(block) in (which, ALL):
            return []
        self._chunks[block] = which
        self._carried.discard(block)
        return [Subscribe((self._fleet.chunk(block, which),))]
