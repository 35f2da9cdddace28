"""What operators ask of the coordinator: kept over a restart, answered once on disk, refused where it cannot be."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.service import Coordinator
from protocol.memory import MemoryBroker, MemoryTransport
from protocol.messages import PROTOCOL, Reply, Request, Status, decode
from protocol.topics import Topics
from protocol.transport import Received
from tests.parties import Party, eventually
from tests.test_system_memory import coordinator
from tests.worlds import spec

HERE = Topics("test")


@contextmanager
def running(broker: MemoryBroker, folder: Path) -> Iterator[Coordinator]:
    """One life of the coordinator, ended in order."""
    life, stop = coordinator(broker, folder, spec(3), 0), threading.Event()
    thread = threading.Thread(target=life.run, args=(stop,))
    thread.start()
    try:
        assert eventually(lambda: "band-3" in life.core.registry.devices)
        yield life
        assert thread.is_alive(), "it fell"
    finally:
        stop.set()
        life.wake()
        thread.join(10)


class Operator:
    """Asks as `relief fleet` does."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._party, self._ids = Party(MemoryTransport(broker, "op")), itertools.count()
        self._party.listen(HERE.reply("op"))

    def asks(self, kind: str, **args: Any) -> Reply:
        request = Request(id=f"{next(self._ids)}", operator="op", kind=kind, args=args)  # type: ignore[arg-type]
        self.says(request.encode())
        reply = decode(Reply, self._party.next(Received).payload)
        assert reply.id == request.id
        return reply

    def says(self, payload: bytes) -> None:
        self._party.transport.publish(HERE.coordinator("request"), payload)


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    made = MemoryBroker()
    band = Party(MemoryTransport(made, "band-3"))
    birth = Status(online=True, boot="b", protocol=PROTOCOL, modalities={"torso": 3}, windows=40, can_train=True)
    band.transport.publish(HERE.device("band-3", "status"), birth.encode(), retain=True)
    yield made
    made.close()


def test_a_pause_and_what_is_held_outlive_a_restart_until_an_operator_ends_them(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    op = Operator(broker)
    with running(broker, tmp_path):
        assert op.asks("quarantine", device="band-3", reason="sensor is loose").ok
        assert op.asks("pause").ok
    with running(broker, tmp_path) as life:
        assert life.core.paused and life.core.registry.held == {"band-3": "sensor is loose"}
        assert life.core.registry.ready() == []
        assert op.asks("release", device="band-3").ok and op.asks("resume").ok
    with running(broker, tmp_path) as life:
        assert not life.core.paused and life.core.registry.held == {}


def test_a_wish_is_on_disk_before_it_is_answered(broker: MemoryBroker, tmp_path: Path) -> None:
    op = Operator(broker)
    with running(broker, tmp_path) as life:
        sync, synced = life.ledger.journal.sync, []

        def watched() -> None:
            sync()
            synced.append([r.header["paused"] for r in life.ledger.journal.records() if r.kind == "wish"])

        life.ledger.journal.sync = watched  # type: ignore[method-assign]
        assert op.asks("pause").ok
        assert [True] in synced


@pytest.mark.parametrize("kind", ["quarantine", "release"])
def test_nobody_holds_or_releases_a_device_that_was_never_heard_of(
    broker: MemoryBroker, tmp_path: Path, kind: str
) -> None:
    op = Operator(broker)
    with running(broker, tmp_path) as life:
        told = op.asks(kind, device="bnad-3")
        assert (told.ok, told.reason) == (False, "never heard of bnad-3")
        for args in ({}, {"device": ["band-3"]}):
            assert op.asks(kind, **args).reason == "device is no name"
        assert life.core.registry.quarantined == {}


def test_who_is_held_can_be_released_although_its_birth_was_lost(broker: MemoryBroker, tmp_path: Path) -> None:
    op = Operator(broker)
    with running(broker, tmp_path):
        assert op.asks("quarantine", device="band-3").ok
    with running(broker, tmp_path) as life:
        del life.core.registry.devices["band-3"]
        assert op.asks("release", device="band-3").ok


def test_an_order_for_what_is_no_name_is_refused_and_ends_nothing(broker: MemoryBroker, tmp_path: Path) -> None:
    op = Operator(broker)
    with running(broker, tmp_path):
        told = op.asks("order", devices=[["band-3"]], order="profile")
        assert (told.ok, told.reason) == (False, "order: devices is no list of names")


@pytest.mark.parametrize("name", ["op+x", "op#", "op\0", "a/b", ""])
def test_an_operator_whom_no_topic_can_answer_is_refused_and_counted(
    broker: MemoryBroker, tmp_path: Path, name: str
) -> None:
    op = Operator(broker)
    plain = Request(id="1", operator="op", kind="versions")
    with running(broker, tmp_path) as life:
        op.says(plain.model_copy(update={"operator": name}).encode())
        assert op.asks("versions").ok, "the next is answered"
        assert life.refusals.counts["request refused"] == 1
