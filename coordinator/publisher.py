"""What the coordinator keeps retained at the broker: its state and the blocks, all said again after every connect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.partition import Vector
from protocol.chunks import CHUNK, ENVELOPE, split
from protocol.messages import CoordinatorState, Manifest
from protocol.topics import Topics
from protocol.transport import Transport

Packet = tuple[str, bytes]  # topic and payload


@dataclass(frozen=True)
class _Block:
    """A block's version that is to be retained."""

    version: int
    epoch: int
    vector: Vector
    scale: tuple[list[float], list[float]] | None


class Publisher:
    """Blocks go over `bulk`, so that a heartbeat never waits behind them; the state over `control`.

    `chunk_size` is what the broker takes, known once it is connected: blocks are cut when they are said. Where the
    transport raises (TooLarge, Congested), what was not said yet is kept in mind for `go_on`.
    """

    def __init__(self, topics: Topics, control: Transport, bulk: Transport) -> None:
        self._topics, self._control, self._bulk = topics, control, bulk
        self._blocks: dict[str, _Block] = {}
        self._chunks: dict[str, int] = {}  # block -> chunks that may be retained at the broker
        self._unsaid: dict[str, int] = {}  # block -> how many of its messages the connection has taken so far
        self._state = CoordinatorState(online=False)
        self.chunk_size = CHUNK
        self.bytes_down = 0

    def state(self, state: CoordinatorState) -> None:
        """Say who we are. A new boot asks every device for its birth."""
        self._state = state
        self._control.publish(self._topics.coordinator("state"), state.encode(), retain=True)

    def block(
        self, name: str, version: int, epoch: int, vector: Vector, scale: tuple[list[float], list[float]] | None
    ) -> None:
        """Publish a block's new version."""
        self._blocks[name] = _Block(version, epoch, np.ascontiguousarray(vector), scale)
        self._unsaid[name] = 0
        messages = self._messages(name)
        self.bytes_down += sum(len(payload) for _, payload in messages)
        self._say(name, messages)

    def clear(self, name: str) -> None:
        """Take a block back: nothing of it stays retained."""
        if self._blocks.pop(name, None) is None:
            return
        self._unsaid.pop(name, None)
        self._bulk.publish(self._topics.manifest(name), b"", retain=True)
        for k in reversed(range(self._chunks.pop(name, 0))):
            self._bulk.publish(self._topics.chunk(name, k), b"", retain=True)

    def again_control(self) -> None:
        """After a control connect: the broker may have lost everything."""
        if self._state.online:
            self.state(self._state)

    def again_bulk(self) -> None:
        """After a bulk connect: all blocks once more, cut to what this broker takes."""
        self._unsaid = dict.fromkeys(self._blocks, 0)
        self.go_on()

    def go_on(self) -> None:
        """Say what the connection did not take before."""
        for name in list(self._unsaid):
            self._say(name, self._messages(name))

    def _say(self, name: str, messages: list[Packet]) -> None:
        """Say those of a block's messages that are not said yet."""
        # What a longer past left behind goes first.
        most = self._chunks[name] = max(len(messages) - 1, self._chunks.get(name, 0))
        surplus = [(self._topics.chunk(name, k), b"") for k in range(len(messages) - 1, most)]
        for topic, payload in [*surplus, *messages][self._unsaid[name] :]:
            self._bulk.publish(topic, payload, retain=True)
            self._unsaid[name] += 1
        del self._unsaid[name]
        self._chunks[name] = len(messages) - 1

    def _messages(self, name: str) -> list[Packet]:
        """The block's chunks, the first with the manifest, and the manifest alone."""
        block = self._blocks[name]
        plain = block.vector
        chunks = split(f"{block.epoch}.{block.version}", plain.view(np.uint8).data, self.chunk_size)
        center, width = block.scale or ([], [])
        manifest = Manifest.model_validate(
            {
                "block": name,
                "version": block.version,
                "epoch": block.epoch,
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
        return [*messages, (self._topics.manifest(name), said)]
