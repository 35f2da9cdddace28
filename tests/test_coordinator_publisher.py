"""What is retained at the broker of a block: its chunks, the first with the manifest, and the manifest alone."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from coordinator.publisher import Publisher
from protocol.chunks import CHUNK
from protocol.errors import Congested
from protocol.memory import MemoryBroker, MemoryTransport
from protocol.messages import Chunk, Manifest, decode
from protocol.topics import Topics

FLEET = Topics("f")


@pytest.fixture
def broker():
    made = MemoryBroker()
    yield made
    made.close()


def publish(broker: MemoryBroker, vector: np.ndarray, channels: int) -> list[bytes | None]:
    """Payloads of the manifest and of chunks 0, 1, 2."""
    transports = [MemoryTransport(broker, name) for name in ("control", "bulk")]
    for transport in transports:
        transport.open(lambda event: None)
    scale = ([0.5] * channels, [1.5] * channels)
    Publisher(FLEET, *transports).block("wrist", 7, 3, vector, scale)
    return [broker.retained(t) for t in (FLEET.manifest("wrist"), *(FLEET.chunk("wrist", k) for k in range(3)))]


@pytest.mark.parametrize(("floats", "chunks"), [(100, 1), (CHUNK // 4 + 1, 2)])
def test_the_first_chunk_has_the_manifest_with_it(broker, floats, chunks):
    vector = np.arange(floats, dtype=np.float32)
    said, *parts = publish(broker, vector, channels=6)
    manifest = decode(Manifest, said)
    assert (manifest.version, manifest.epoch, manifest.chunks, manifest.size) == (7, 3, chunks, vector.nbytes)
    first, *others = (decode(Chunk, part) for part in parts if part is not None)
    assert first.manifest == manifest
    assert [other.manifest for other in others] == [None] * (chunks - 1)
    assert b"".join(c.data for c in (first, *others)) == vector.tobytes()


def test_a_manifest_with_very_many_channels_stays_alone(broker):
    said, first, *_ = publish(broker, np.zeros(10, np.float32), channels=1000)
    assert len(decode(Manifest, said).center) == 1000
    assert decode(Chunk, first).manifest is None


def test_blocks_are_cut_anew_at_every_connect_and_what_is_left_over_goes(broker):
    control, bulk = (MemoryTransport(broker, name) for name in ("control", "bulk"))
    for transport in (control, bulk):
        transport.open(lambda event: None)
    publisher, vector = Publisher(FLEET, control, bulk), np.arange(1000, dtype=np.float32)
    publisher.block("wrist", 7, 3, vector, None)
    for size, chunks in ((1000, 4), (4000, 1), (1300, 4), (2000, 2)):
        publisher.chunk_size = size
        publisher.again_bulk()
        parts = [broker.retained(FLEET.chunk("wrist", k)) for k in range(5)]
        there = [decode(Chunk, part) for part in parts if part is not None]
        assert b"".join(c.data for c in there) == vector.tobytes()
        assert len(there) == chunks == decode(Manifest, broker.retained(FLEET.manifest("wrist"))).chunks
    publisher.clear("wrist")
    assert not any(
        broker.retained(topic) for topic in (FLEET.manifest("wrist"), *(FLEET.chunk("wrist", k) for k in range(5)))
    )


class Narrow:
    """A connection that takes three messages at a time."""

    def __init__(self):
        self.taken, self.waiting = [], deque()

    def publish(self, topic, payload, **more):
        if len(self.waiting) == 3:
            raise Congested(topic, 3, 3)
        self.waiting.append((topic, payload))

    def answer(self):
        self.taken += self.waiting
        self.waiting.clear()


def test_what_a_connection_does_not_take_is_said_later_from_where_it_stopped():
    bulk = Narrow()
    publisher = Publisher(FLEET, Narrow(), bulk)
    publisher.chunk_size, blocks = 400, {name: np.arange(500, dtype=np.float32) for name in ("wrist", "shared")}
    for name, vector in blocks.items():
        with pytest.raises(Congested):
            publisher.block(name, 7, 3, vector, None)
    for _ in range(10):
        bulk.answer()
        try:
            publisher.go_on()
        except Congested:
            continue
        break
    bulk.answer()
    for name in blocks:
        topics = [*(FLEET.chunk(name, k) for k in range(5)), FLEET.manifest(name)]
        assert [topic for topic, _ in bulk.taken if topic.split("/")[4] == name] == topics
