"""What strangers' bytes reach: each target takes bytes and must neither raise, hang nor grow, whatever they are.

What a target lets through is what its callers catch: ProtocolError for messages, CheckpointError for checkpoints, and
nothing at all for the journal, the outbox, the agent and the coordinator.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from coordinator import checkpoint
from coordinator.intake import check
from coordinator.journal import Journal
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies.base import Settings
from coordinator.strategies.relief import Relief
from device_runtime.agent import Agent
from device_runtime.events import StartTraining, TrainingFailed
from device_runtime.listen import heard
from device_runtime.outbox import Outbox
from models.partition import initial, partition
from models.spec import InputSpec, Mode, ModelSpec
from protocol import messages
from protocol.chunks import Reassembly
from protocol.errors import ProtocolError
from protocol.memory import MemoryBroker, MemoryTransport
from protocol.messages import Message, Status, Update, decode
from protocol.topics import Topics, matches
from protocol.transport import Connected, Received

KINDS: tuple[type[Message], ...] = tuple(
    kind for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
)  # fmt: skip
TOPICS = Topics("fuzz")
SPEC = ModelSpec((InputSpec("arm", 2, 3), InputSpec("leg", 1, 3)), 3, widths=(), fusion=4, mode=Mode.FULL)
LEAVES = ("status", "update", "report", "telemetry", "assignment", "answer", "order", "label")


def folder() -> Path:
    """A place for files, in memory where the system has it."""
    return _scratch()[0]


@lru_cache(maxsize=1)
def _scratch() -> tuple[Path, object]:
    memory = Path("/dev/shm")
    kept = tempfile.TemporaryDirectory(prefix="relief-fuzz-", dir=memory if memory.is_dir() else None)
    return Path(kept.name), kept


# -- decoders ------------------------------------------------------------------------------------------------


def message(data: bytes) -> None:
    """Any message; what decodes can be encoded and decoded to the same."""
    if not data:
        return
    kind = KINDS[data[0] % len(KINDS)]
    with contextlib.suppress(ProtocolError):
        found = decode(kind, data[1:])
        packed = found.encode()
        assert decode(kind, packed).encode() == packed


def update(data: bytes) -> None:
    """An update, its tensors and the intake's checks."""
    with contextlib.suppress(ProtocolError):
        found = decode(Update, data)
        for work in found.blocks.values():
            with contextlib.suppress(ValueError):
                assert work.delta.array().ndim == 1
        if not check(found, found.device, partition(SPEC)):
            for name, work in found.blocks.items():
                assert np.isfinite(work.delta.array()).all() and work.delta.array().size == partition(SPEC).size(name)


def chunks(data: bytes) -> None:
    """A sequence of chunks, each behind its length."""
    parts, limit = Reassembly(max_bytes=10_000), 0
    while len(data) >= 2 and limit < 50:
        (size,) = struct.unpack_from("<H", data)
        with contextlib.suppress(ProtocolError):
            parts.add(decode(messages.Chunk, data[2 : 2 + size]))
        data, limit = data[2 + size :], limit + 1


def topic(data: bytes) -> None:
    """Topics and filters."""
    text = data.decode("utf-8", "replace")
    TOPICS.parse(text)
    left, _, right = text.partition("\n")
    matches(left, right)


def model_spec(data: bytes) -> None:
    """A model's description as it comes in the coordinator's state."""
    agent = _agent()
    with contextlib.suppress(ProtocolError):
        agent.handle(decode(messages.CoordinatorState, data), 1.0)


# -- files ---------------------------------------------------------------------------------------------------


def journal(data: bytes) -> None:
    """A segment with any content opens, and takes records again."""
    place = folder() / "journal"
    place.mkdir(exist_ok=True)
    for old in place.glob("*.log"):
        old.unlink()
    marker = b"\x8f\x01relief"
    (place / f"{1:016d}-{marker.hex()}.log").write_bytes(data.replace(b"MARKER##", marker))
    opened = Journal.open(place)
    for record in opened.records():
        assert opened._index[record.position].sound()
    position = opened.append("update", {"n": 1}, b"body")
    opened.sync()
    assert opened.read(position) == b"body"
    opened.close()
    again = Journal.open(place)
    assert again.read(position) == b"body"
    again.close()


def manifest(data: bytes) -> None:
    """A checkpoint whose manifest is anything."""
    root = folder() / "checkpoints"
    path = root / "checkpoint-00000001"
    if not path.exists():
        blocks, _ = initial(SPEC)
        checkpoint.save(root, 1, blocks, SPEC, {})
    (path / "manifest.json").write_bytes(data)
    with contextlib.suppress(checkpoint.CheckpointError):
        checkpoint.load(path)


def outbox(data: bytes) -> None:
    """A file in the outbox with any content."""
    place = folder() / "outbox"
    place.mkdir(exist_ok=True)
    (place / "00.update").write_bytes(data)
    for entry in Outbox(place).entries:
        assert entry.size >= 0


# -- both cores ----------------------------------------------------------------------------------------------


def _agent() -> Agent:
    birth = Status(online=True, boot="b", modalities={"arm": 2}, windows=20, can_train=True)
    agent = Agent(TOPICS, "d1", birth, jitter=lambda: 0.5)
    agent.handle(Connected(100_000), 0.0)
    return agent


def device(data: bytes) -> None:
    """An agent hears a sequence of messages on any topics that reach it."""
    agent, now = _agent(), 1.0
    names = [f"{TOPICS.root}/{leaf}" for leaf in ("coordinator/state", "block/arm/manifest", "block/arm/0",
             "block/shared/manifest", "block/shared/0", *(f"device/d1/{leaf}" for leaf in LEAVES))]  # fmt: skip
    for where, payload in _parts(data):
        now += 0.5
        with contextlib.suppress(ProtocolError):
            event = heard(TOPICS, "d1", Received(names[where % len(names)], payload))
            if event is None:
                continue
            for action in agent.handle(event, now):
                if isinstance(action, StartTraining):
                    agent.handle(TrainingFailed(action.assignment.id, "no training here"), now)
        assert agent.wakes() > now - 1.0 or agent.wakes() <= now
    assert len(agent.downloads.held) <= 3


class _Fleet:
    """A coordinator that many inputs meet; fresh now and then, so that one input cannot hide the next."""

    def __init__(self) -> None:
        self.place = tempfile.TemporaryDirectory(dir=folder())
        broker = MemoryBroker()
        self.coordinator = Coordinator(
            fleet="fuzz",
            spec=SPEC,
            strategy=Relief(SPEC, Settings()),
            pace=Pace(expect=1, gather=0.0),
            folder=Path(self.place.name),
            control=MemoryTransport(broker, "control"),
            bulk=MemoryTransport(broker, "bulk"),
        )
        self.coordinator._resume()
        self.coordinator.core.epoch = 1  # as the samples say
        self.inputs = 0

    def close(self) -> None:
        self.coordinator.ledger.close()
        self.coordinator.history.close()
        self.place.cleanup()


_fleets: list[_Fleet] = []


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Thousands of refusals are logged; whoever runs in this process next may log again."""
    log = logging.getLogger("relief.coordinator")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def coordinator(data: bytes) -> None:
    """A whole coordinator hears a sequence of messages from devices and operators."""
    if not _fleets or _fleets[0].inputs > 2000:
        for old in _fleets:
            old.close()
        _fleets[:] = [_Fleet()]
    fleet = _fleets[0]
    fleet.inputs += 1
    life = fleet.coordinator
    names = [f"{TOPICS.root}/device/{d}/{leaf}" for d in ("d1", "d2") for leaf in LEAVES[:4]]
    names.append(f"{TOPICS.root}/coordinator/request")
    before = dict(life.core.versions)
    for where, payload in _parts(data):
        life._inbox.put(("bulk", Received(names[where % len(names)], payload)))
    life._inbox.put(None)
    with _in_silence():
        life._step()
    for block, version in before.items():
        assert life.core.versions[block] >= version
    assert all(np.isfinite(vector).all() for vector in life.blocks.values())


def _parts(data: bytes) -> list[tuple[int, bytes]]:
    """(which topic, payload), each behind one byte and a length."""
    parts = []
    while len(data) >= 3 and len(parts) < 20:
        where, size = struct.unpack_from("<BH", data)
        parts.append((where, data[3 : 3 + size]))
        data = data[3 + size :]
    return parts


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (message, update, chunks, topic, model_spec, journal, manifest, outbox, device, coordinator)
}
EFFORT = {"message": 40, "update": 15, "chunks": 8, "topic": 8, "model_spec": 5, "journal": 2, "manifest": 4,
          "outbox": 4, "device": 8, "coordinator": 6}  # fmt: skip
"""Shares of the inputs: what is quick and what strangers reach first gets more."""
