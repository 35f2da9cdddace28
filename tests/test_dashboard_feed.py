"""The page's connection: batches, replies, rights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.memory import MemoryBroker, MemoryTransport
from protocol.messages import Label, decode
from protocol.transport import Received
from tests.parties import Party, eventually
from tests.synthetic_fleet import SyntheticCoordinator
from tools.dashboard.feed import Feed, NoRights


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    made = MemoryBroker()
    yield made
    made.close()


@pytest.fixture
def coordinator(broker: MemoryBroker) -> Iterator[SyntheticCoordinator]:
    made = SyntheticCoordinator("f", MemoryTransport(broker, "coordinator-control"), 6)
    yield made
    made.close()


def start(broker: MemoryBroker, *, rights: bool) -> Feed:
    feed = Feed("f", MemoryTransport(broker, "operator-test-dashboard"), rights=rights)
    feed.start()
    return feed


def test_it_shows_what_was_retained_before_it_came(broker: MemoryBroker, coordinator: SyntheticCoordinator) -> None:
    feed = start(broker, rights=False)
    assert eventually(lambda: len(feed.board.rows) == 6 and feed.board.coordinator is True)
    feed.close()


def test_of_a_burst_of_summaries_only_the_latest_is_read(
    broker: MemoryBroker, coordinator: SyntheticCoordinator
) -> None:
    feed = start(broker, rights=False)
    assert eventually(lambda: bool(feed.board.rows))
    before = feed.counts["summaries"]
    for _ in range(100):
        coordinator.fleet.open()
        coordinator.fleet.finish()
        coordinator.say()
    assert eventually(lambda: feed.board.summary["round"] == 101)
    assert feed.counts["summaries"] - before < 20
    assert feed.counts["messages"] >= 100
    feed.close()


def test_a_request_is_answered_by_the_coordinator(broker: MemoryBroker, coordinator: SyntheticCoordinator) -> None:
    feed = start(broker, rights=True)
    assert eventually(lambda: bool(feed.board.rows))
    assert feed.ask("quarantine", device="hub-1", reason="loose").result(5).ok
    assert eventually(lambda: feed.board.rows["hub-1"]["state"] == "quarantined")
    assert feed.board.rows["hub-1"]["why"] == "loose"
    feed.close()


def test_without_rights_nothing_is_sent(broker: MemoryBroker, coordinator: SyntheticCoordinator) -> None:
    feed = start(broker, rights=False)
    assert eventually(lambda: bool(feed.board.rows))
    with pytest.raises(NoRights, match="--control"):
        feed.ask("pause")
    with pytest.raises(NoRights):
        feed.label("hub-1", Label(start=0.0, end=1.0, label=2))
    assert coordinator.asked == []
    feed.close()


def test_a_label_reaches_its_device(broker: MemoryBroker, coordinator: SyntheticCoordinator) -> None:
    device = Party(MemoryTransport(broker, "hub-1"))
    device.listen(coordinator.topics.device("hub-1", "label"))
    feed = start(broker, rights=True)
    feed.label("hub-1", Label(start=10.0, end=20.0, label=3))
    assert decode(Label, device.next(Received).payload) == Label(start=10.0, end=20.0, label=3)
    feed.close()


def test_a_request_that_nobody_answers_is_given_up(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.dashboard.feed.ANSWER", 0.2)
    feed = start(broker, rights=True)
    with pytest.raises(TimeoutError, match="is it running"):
        feed.ask("pause").result(5)
    feed.close()


def test_rubbish_on_the_topics_is_counted_and_changes_nothing(
    broker: MemoryBroker, coordinator: SyntheticCoordinator
) -> None:
    feed = start(broker, rights=True)
    assert eventually(lambda: bool(feed.board.rows))
    rows = dict(feed.board.rows)
    stranger = Party(MemoryTransport(broker, "stranger"))
    for topic in ("coordinator/round", "coordinator/state", "device/hub-1/telemetry"):
        stranger.transport.publish(f"relief/v1/f/{topic}", b"\xc1rubbish")
    stranger.transport.publish("relief/v1/f/coordinator/reply/operator-test-dashboard", b"\xc1")
    assert eventually(lambda: feed.counts["refused"] == 4)
    assert feed.board.rows == rows
    feed.close()


def test_the_coordinators_death_shows(broker: MemoryBroker, coordinator: SyntheticCoordinator) -> None:
    feed = start(broker, rights=False)
    assert eventually(lambda: feed.board.coordinator is True)
    broker.cut("coordinator-control", 60.0)
    assert eventually(lambda: feed.board.coordinator is False)
    feed.close()
