"""What the coordinator keeps retained at the broker: its state and the blocks, all said again after every connect."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.partition import Vector
from protocol.chunks import CHUNK, ENVELOPE, split
from protocol.messages import CoordinatorState, Manifest
from protocol.topics import Topics
from protocol.transport import Transport


class Publisher:
    """Blocks go over `bulk`, so that a heartbeat never waits behind them; the state over `control`."""

    def __init__(self, topics: Topics, control: Transport, bulk: Transport) -> None:
        self._topics, self._control, self._bulk = topics, control, bulk
        self._chunks: dict[str, int] = {}  # block -> chunks that are retained at the broker
        self._retained: dict[str, list[tuple[str, bytes]]] = {}
        self._state = CoordinatorState(online=False)
        self.chunk_size = CHUNK
        self.bytes_down = 0

    def state(self, state: CoordinatorState) -> None:
        """Say who we are. A new boot asks every device for its birth."""
        self._state = state
        self._control.publish(self._topics.coordinator("state"), state.encode(), retain=True)

    def block(
        self, name: str, version: int, epoch: int, vector: Vector, scale: tuple[list[float], list[float]] | None
    ) -> int:
        """Publish a block's new version, chunks first; surplus chunks of a longer past are cleared. Returns bytes."""
        plain = np.ascontiguousarray(vector)
        chunks = split(f"{epoch}.{version}", plain.view(np.uint8).data, self.chunk_size)
        center, width = scale or ([], [])
        manifest = Manifest.model_validate(
            {
                "block": name,
                "version": version,
                "epoch": epoch,
                "chunks": len(chunks),
                "size": plain.nbytes,
                "digest": chunks[0].digest,
                "dtype": plain.dtype.str,
                "center": center,
                "width": width,
            }
        )
        said = manifest.encode()
        if len(said) < ENVELOPE / 2:  # with very many channels there may be no room left for it
            chunks[0] = chunks[0].model_copy(update={"manifest": manifest})
        messages = [(self._topics.chunk(name, chunk.index), chunk.encode()) for chunk in chunks]
        messages.append((self._topics.manifest(name), said))
        for surplus in range(len(chunks), self._chunks.get(name, 0)):
            self._bulk.publish(self._topics.chunk(name, surplus), b"", retain=True)
        self._chunks[name], self._retained[name] = len(chunks), messages
        for topic, payload in messages:
            self._bulk.publish(topic, payload, retain=True)
        size = sum(len(payload) for _, payload in messages)
        self.bytes_down += size
        return size

    def clear(self, name: str) -> None:
        """Take a block back: nothing of it stays retained."""
        for topic, _ in reversed(self._retained.pop(name, [])):  # the manifest first
            self._bulk.publish(topic, b"", retain=True)
        self._chunks.pop(name, None)

    def again_control(self) -> None:
        """After a control connect: the broker may have lost everything."""
        if self._state.online:
            self.state(self._state)

    def again_bulk(self) -> None:
        """After a bulk connect: all blocks once more."""
        for messages in self._retained.values():
            for topic, payload in messages:
                self._bulk.publish(topic, payload, retain=True)

    def sizes(self) -> Mapping[str, int]:
        """Bytes of each block's present version on the wire."""
        return {name: sum(len(p) for _, p in messages) for name, messages in self._retained.items()}
