"""The faulty transport does what it is told, the same for the same seed, over memory in virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import TooLarge
from protocol.faulty import Faults, FaultyTransport
from protocol.memory import MemoryBroker, MemoryTransport
from protocol.transport import Connected, Event, Lost, Received, Will


class VirtualTime:
    """A schedule whose time passes when `run` is called."""

    def __init__(self) -> None:
        self.now, self._count = 0.0, itertools.count()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []

    def __call__(self, delay: float, fn: Callable[[], None], /) -> None:
        heapq.heappush(self._waiting, (self.now + delay, next(self._count), fn))

    def run(self, seconds: float = 1e9) -> None:
        until = self.now + seconds
        while self._waiting and self._waiting[0][0] <= until:
            self.now, _, fn = heapq.heappop(self._waiting)
            fn()
        self.now = until


class _World:
    """A sender behind faults, a receiver without."""

    def __init__(self, faults: Faults, seed: int = 0, will: Will | None = None) -> None:
        self.time = VirtualTime()
        self.broker = MemoryBroker(now=lambda: self.time.now, schedule=self.time, max_payload=1000)
        self.events: list[Event] = []
        self.sent: list[Event] = []
        self.receiver = MemoryTransport(self.broker, "receiver")
        self.receiver.open(self.events.append)
        self.receiver.subscribe("#")
        self.sender = FaultyTransport(MemoryTransport(self.broker, "sender"), faults, seed=seed, schedule=self.time)
        self.sender.open(self.sent.append, will)

    def arrived(self) -> list[int]:
        return [int(event.payload) for event in self.events if isinstance(event, Received) and event.topic == "t"]

    def send(self, count: int, pause: float = 0.0) -> None:
        for n in range(count):
            self.sender.publish("t", str(n).encode())
            self.time.run(pause)


def test_a_seed_gives_the_same_faults_again() -> None:
    faults = Faults(drop=0.2, duplicate=0.2, reorder=0.2, delay=(0.0, 1.0), cut=0.02)
    runs = []
    for seed in (1, 1, 2):
        world = _World(faults, seed)
        world.send(300, pause=0.05)
        world.time.run()
        runs.append((world.arrived(), dict(world.sender.counts)))
    assert runs[0] == runs[1] != runs[2]


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_delays_alone_keep_order_and_lose_nothing(seed: int) -> None:
    world = _World(Faults(delay=(0.0, 5.0)), seed)
    world.send(40, pause=0.1)
    world.time.run()
    assert world.arrived() == list(range(40))


def test_dropped_messages_are_as_many_as_asked_for() -> None:
    world = _World(Faults(drop=0.3))
    world.send(2000)
    assert 1300 <= len(world.arrived()) <= 1500
    assert len(world.arrived()) + world.sender.counts["dropped"] == 2000


def test_duplicates_come_right_after_or_later_but_never_first() -> None:
    world = _World(Faults(duplicate=1.0))
    world.send(10)
    assert world.arrived() == [n for n in range(10) for _ in range(2)]


def test_reordered_messages_change_places_and_all_arrive() -> None:
    world = _World(Faults(reorder=0.5))
    world.send(100)
    world.time.run()
    assert sorted(world.arrived()) == list(range(100)) != world.arrived()


def test_a_cut_loses_what_is_under_way_and_the_subscriptions() -> None:
    world = _World(Faults(delay=(1.0, 1.0)))
    world.sender.subscribe("mine")
    world.send(5)
    world.sender.cut(10.0)
    world.receiver.publish("mine", b"1")
    world.sender.publish("t", b"9")
    world.time.run(9.0)
    assert world.arrived() == []
    assert [type(event) for event in world.sent] == [Connected, Lost]
    world.time.run(2.0)
    assert world.sent[-1] == Connected(1000)
    world.receiver.publish("mine", b"2")
    world.time.run()
    assert world.sent[-1] == Connected(1000)
    world.sender.subscribe("mine")
    world.receiver.publish("mine", b"3")
    world.time.run()
    assert world.sent[-1] == Received("mine", b"3")


@pytest.mark.parametrize(("seconds", "dead"), [(3.0, False), (8.0, True)])
def test_the_will_is_sent_by_a_cut_longer_than_its_delay(seconds: float, dead: bool) -> None:
    world = _World(Faults(), will=Will("will", b"dead", delay=5))
    world.sender.cut(seconds)
    world.time.run()
    assert (world.broker.retained("will") == b"dead") is dead


def test_a_message_above_the_limit_is_refused_at_once() -> None:
    world = _World(Faults(delay=(1.0, 1.0)))
    with pytest.raises(TooLarge):
        world.sender.publish("t", bytes(1001))


def test_a_loss_beneath_comes_through_and_takes_what_was_under_way() -> None:
    world = _World(Faults(delay=(1.0, 1.0)))
    world.send(3)
    world.broker.cut("sender", 5.0)
    world.time.run()
    assert world.arrived() == []
    assert [type(event) for event in world.sent] == [Connected, Lost, Connected]


def test_after_close_nothing_moves() -> None:
    world = _World(Faults(delay=(1.0, 1.0)))
    world.send(3)
    world.sender.close()
    world.time.run()
    assert world.arrived() == []


def test_the_memory_broker_delivers_in_order_even_to_those_who_answer_from_their_inbox() -> None:
    broker, seen = MemoryBroker(), []
    a, b, c = (MemoryTransport(broker, name) for name in "abc")
    a.open(lambda event: None)
    b.open(lambda event: b.publish("t", b"2") if event == Received("t", b"1") else None)
    c.open(lambda event: seen.append(event.payload) if isinstance(event, Received) else None)
    b.subscribe("t")
    c.subscribe("t")
    a.publish("t", b"1")
    assert seen == [b"1", b"2"]
