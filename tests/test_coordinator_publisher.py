"""What is retained at the broker of a block: its chunks, the first with the manifest, and the manifest alone."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.publisher import Publisher
from protocol.chunks import CHUNK
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
