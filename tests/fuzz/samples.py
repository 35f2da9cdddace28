"""Valid inputs to begin from: what the parties really say and write."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import numpy as np

from coordinator import checkpoint
from coordinator.journal import Journal
from device_runtime.outbox import Outbox
from models.partition import initial, partition
from protocol import messages as m
from protocol.chunks import split
from protocol.messages import update_id
from tests.fuzz.targets import KINDS, SPEC


def status(boot: str = "b") -> m.Status:
    return m.Status(
        online=True,
        boot=boot,
        modalities={"arm": 2, "leg": 1},
        windows=30,
        can_train=True,
        speed={"arm": m.BlockSpeed(forward=0.001, backward=0.002)},
        scale={"arm": m.Scale(count=2, total=[1.0, 2.0], squares=[3.0, 4.0])},
    )


def an_update(round: int = 1, epoch: int = 1) -> m.Update:
    assignment = f"{epoch}.{round}"
    blocks = {
        name: m.BlockWork(
            # A modality's first normalisation made its fresh block version 1.
            version=round - (name == "shared"),
            steps=1,
            delta=m.Tensor.of(np.full(partition(SPEC).size(name), 0.1, "<f4")),
        )
        for name in ("arm", "shared")
    }
    return m.Update(id=update_id("d1", "b", assignment), device="d1", boot="b", round=round, epoch=epoch,
                    assignment=assignment, blocks=blocks, samples=30)  # fmt: skip


def messages() -> list[m.Message]:
    """One of every kind."""
    vector = initial(SPEC)[0]["arm"]
    (chunk,) = split("1.0", vector.tobytes())
    steps, versions = {"arm": 2, "shared": 2}, {"arm": 0, "shared": 0}
    return [
        m.Tensor.of(vector),
        m.CoordinatorState(online=True, boot="c", epoch=1, model=SPEC.to_dict()),
        m.Manifest(block="arm", version=0, epoch=1, chunks=1, size=vector.nbytes, digest=bytes(chunk.digest)),
        chunk,
        m.Assignment(id="1.1", round=1, epoch=1, steps=steps, versions=versions, deadline=9.0),
        m.Answer(update="u", accepted=False, reason="stale", again=True),
        m.Order(id="o", kind="profile"),
        m.RoundSummary(round=1, epoch=1, phase="training", fields={"devices": {}}),
        m.Request(id="r", operator="ann", kind="quarantine", args={"device": "d2"}),
        m.Reply(id="r", ok=True),
        status(),
        an_update(),
        m.Report(id="1.1", kind="declined", ok=False, reason="hot"),
        m.Telemetry(time=1.0, values={"watts": 3.0}),
        m.Prediction(start=0.0, end=1.0, label=1, confidence=0.5, versions=versions),
        m.Label(start=0.0, end=1.0, label=2),
    ]


def part(where: int, payload: bytes) -> bytes:
    return struct.pack("<BH", where, len(payload)) + payload


def samples(target: str) -> list[bytes]:
    """Valid inputs of a target."""
    everything = messages()
    by_name = {type(one).__name__: one for one in everything}
    if target == "message":
        return [bytes([KINDS.index(type(one))]) + one.encode() for one in everything]
    if target == "update":
        return [an_update().encode()]
    if target == "chunks":
        pieces = [c.encode() for c in split("u", bytes(range(200)), 60)]
        return [b"".join(struct.pack("<H", len(p)) + p for p in pieces)]
    if target == "topic":
        return [b"relief/v1/fuzz/device/+/status\nrelief/v1/fuzz/device/d1/status", b"#\n$SYS/a", b"relief/v1/fuzz/"]
    if target == "model_spec":
        return [by_name["CoordinatorState"].encode()]
    if target == "device":
        heard = [(0, "CoordinatorState"), (1, "Manifest"), (2, "Chunk"), (9, "Assignment"), (10, "Answer")]
        return [b"".join(part(where, by_name[name].encode()) for where, name in heard)]
    if target == "coordinator":
        updates = [split("u", an_update(round).encode())[0] for round in (1, 2, 3)]
        said = [(0, status()), (1, updates[0]), (2, by_name["Report"]), (8, by_name["Request"])]
        rounds = [[(0, status()), (1, one)] for one in updates]
        return [b"".join(part(where, one.encode()) for where, one in some) for some in (said, *rounds)]
    return [_file(target)]


def _file(target: str) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if target == "journal":
            journal = Journal.open(
                place,
            )
            journal.append("update", {"n": 1}, b"body" * 9)
            journal.append("commit", {"round": 1})
            journal.sync()
            journal.close()
            (file,) = place.glob("*.log")
            return file.read_bytes().replace(bytes.fromhex(file.stem.split("-")[1]), b"MARKER##")
        if target == "manifest":
            written = checkpoint.save(place, 1, initial(SPEC)[0], SPEC, {"round": 1})
            assert json.loads((written / "manifest.json").read_bytes())
            return (written / "manifest.json").read_bytes()
        box = Outbox(place)
        box.put("u", "a", b"bytes")
        return next(place.glob("*.update")).read_bytes()
