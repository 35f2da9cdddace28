"""What every transport promises: the same suite over Mosquitto, in memory, and through a faulty one without faults."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterator

import pytest

from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.connection import connection
from protocol.errors import TooLarge
from protocol.faulty import Faults, FaultyTransport
from protocol.memory import MemoryBroker
from protocol.timing import WallClock
from protocol.transport import Event, Received, Stopped, Transport, Will
from tests.parties import Party

Make = Callable[..., Party]
_names = itertools.count()


@pytest.fixture(params=["mqtt", "memory", "faulty over memory", "faulty over mqtt"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes parties that meet at the same broker, and closes them afterwards."""
    over_mqtt = "mqtt" in request.param
    config = BrokerConfig(transport="memory")
    if over_mqtt:
        config = BrokerConfig(port=request.getfixturevalue("broker").port, reconnect_min=0.02, reconnect_max=0.2)
    memory, clock, made = MemoryBroker(max_payload=1_000_000), WallClock(), []

    def one(name: str = "", will: Will | None = None, events: queue.SimpleQueue[Event] | None = None) -> Party:
        transport: Transport = connection(config, name or f"party{next(_names)}", memory)
        if request.param.startswith("faulty"):
            transport = FaultyTransport(transport, Faults(), seed=1, schedule=clock)
        made.append(Party(transport, will, events))
        return made[-1]

    yield one
    for party in made:
        party.transport.close()
    clock.cancel()
    memory.close()


def test_a_message_reaches_every_subscriber_with_its_bytes(make: Make, fleet: str) -> None:
    a, b, c = make(), make(), make()
    for party in (b, c):
        party.listen(f"{fleet}/x")
    payload = bytes(range(256)) * 500
    a.transport.publish(f"{fleet}/x", payload)
    for party in (b, c):
        assert party.next(Received) == Received(f"{fleet}/x", payload)


def test_messages_of_one_sender_keep_their_order(make: Make, fleet: str) -> None:
    a, b = make(), make()
    b.listen(f"{fleet}/#")
    sent = [f"{n}".encode() for n in range(500)]
    for n, payload in enumerate(sent):
        a.transport.publish(f"{fleet}/{n % 3}", payload, qos=1)
    assert b.payloads(500) == sent


def test_wildcards_take_in_one_level_or_all(make: Make, fleet: str) -> None:
    a, one, every = make(), make(), make()
    one.listen(f"{fleet}/device/+/status")
    every.listen(f"{fleet}/#")
    topics = [f"{fleet}/device/d1/status", f"{fleet}/device/d1/update", f"{fleet}/device/d1/status/deep"]
    for topic in topics:
        a.transport.publish(topic, b"1")
    assert one.next(Received).topic == topics[0]
    assert one.silent()
    assert [every.next(Received).topic for _ in topics] == topics


def test_retained_state_meets_a_late_subscriber_marked_as_retained(make: Make, fleet: str) -> None:
    a, late = make(), make()
    a.listen(f"{fleet}/state")
    a.transport.publish(f"{fleet}/state", b"old", retain=True)
    a.transport.publish(f"{fleet}/state", b"new", retain=True)
    assert [a.next(Received).retained for _ in range(2)] == [False, False]
    late.transport.subscribe(f"{fleet}/state")
    assert late.next(Received) == Received(f"{fleet}/state", b"new", retained=True)


def test_an_empty_retained_message_clears_the_state(make: Make, fleet: str) -> None:
    a, late = make(), make()
    a.listen(f"{fleet}/state")
    a.transport.publish(f"{fleet}/state", b"x", retain=True)
    a.transport.publish(f"{fleet}/state", b"", retain=True)
    assert a.payloads(2) == [b"x", b""]
    late.listen(f"{fleet}/state")
    assert late.silent()


def test_what_expires_is_not_delivered_after_its_time(make: Make, fleet: str) -> None:
    a, late = make(), make()
    a.listen(f"{fleet}/#")
    a.transport.publish(f"{fleet}/short", b"x", retain=True, expiry=1)
    a.transport.publish(f"{fleet}/long", b"y", retain=True, expiry=60)
    assert a.payloads(2) == [b"x", b"y"]
    time.sleep(2.1)  # Mosquitto expires by whole seconds
    late.transport.subscribe(f"{fleet}/#")
    assert late.next(Received).payload == b"y"
    assert late.silent()


def test_nothing_arrives_after_unsubscribe(make: Make, fleet: str) -> None:
    a, b = make(), make()
    b.listen(f"{fleet}/x", f"{fleet}/y")
    b.transport.unsubscribe(f"{fleet}/x")
    b.listen(f"{fleet}/y")
    a.transport.publish(f"{fleet}/x", b"1")
    a.transport.publish(f"{fleet}/y", b"2")
    assert b.payloads(1) == [b"2"]


def test_more_filters_than_a_packet_holds_are_all_subscribed(make: Make, fleet: str) -> None:
    a, b = make(), make()
    b.listen(*(f"{fleet}/{n}" for n in range(30)))
    for n in range(30):
        a.transport.publish(f"{fleet}/{n}", str(n).encode())
    assert b.payloads(30) == [str(n).encode() for n in range(30)]


def test_a_clean_goodbye_keeps_the_will_back_and_delivers_what_was_published(make: Make, fleet: str) -> None:
    a = make()
    a.listen(f"{fleet}/#")
    b = make(will=Will(f"{fleet}/will", b"dead", delay=0))
    for n in range(50):
        b.transport.publish(f"{fleet}/last", str(n).encode())
    b.transport.close()
    assert a.payloads(50) == [str(n).encode() for n in range(50)]
    assert a.silent(0.3)


def test_an_abrupt_end_sends_the_will_after_its_delay_and_retains_it(make: Make, fleet: str) -> None:
    a, late = make(), make()
    a.listen(f"{fleet}/#")
    b = make(will=Will(f"{fleet}/will", b"dead", delay=1))
    ended = time.monotonic()
    b.transport.close(clean=False)
    assert a.next(Received).payload == b"dead"
    assert 0.9 <= time.monotonic() - ended < 5
    late.transport.subscribe(f"{fleet}/will")
    assert late.next(Received) == Received(f"{fleet}/will", b"dead", retained=True)


def test_of_two_with_one_identity_one_is_stopped_and_told_why(make: Make, fleet: str) -> None:
    name = f"{fleet}-twin"
    told: queue.SimpleQueue[Event] = queue.SimpleQueue()
    for twin in (make(name, events=told), make(name, events=told)):
        assert twin.name == name
    while not isinstance(event := told.get(timeout=10), Stopped):
        pass
    assert name in event.reason
    assert "identity" in event.reason


def test_a_payload_above_the_brokers_limit_is_refused_before_it_is_sent(make: Make, fleet: str) -> None:
    a = make()
    a.listen(f"{fleet}/x")
    assert a.connected.max_payload == 1_000_000
    with pytest.raises(TooLarge, match="at most 1,000,000"):
        a.transport.publish(f"{fleet}/x", bytes(1_000_001))
    a.transport.publish(f"{fleet}/x", b"still here")
    assert a.payloads(1) == [b"still here"]


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#", "a\0b"])
def test_a_topic_nobody_can_publish_on_is_refused(make: Make, topic: str) -> None:
    with pytest.raises(ValueError, match="no topic to publish on"):
        make().transport.publish(topic, b"")


def test_publishing_after_close_does_nothing(make: Make, fleet: str) -> None:
    a, b = make(), make()
    b.listen(f"{fleet}/x")
    a.transport.close()
    a.transport.publish(f"{fleet}/x", b"ghost")
    assert b.silent()


def test_an_inbox_may_publish(make: Make, fleet: str) -> None:
    a = make()
    a.listen(f"{fleet}/pong")
    b = make()
    b.listen(f"{fleet}/ping")
    a.transport.publish(f"{fleet}/ping", b"1")
    b.transport.publish(f"{fleet}/pong", b"re " + b.next(Received).payload)
    assert a.payloads(1) == [b"re 1"]


def test_the_suite_meets_a_real_mosquitto(broker: Broker) -> None:
    assert "mosquitto" in broker.mosquitto.program.name
    assert broker.mosquitto.version() >= (2, 0)
