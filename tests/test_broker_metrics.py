"""The broker's own numbers, as a real Mosquitto tells them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from broker_config.launcher import Broker
from broker_config.settings import loopback
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies import strategy
from coordinator.strategies.base import Settings
from protocol.broker_metrics import TOPICS, BrokerMetrics
from protocol.config import BrokerConfig
from protocol.messages import RoundSummary, decode
from protocol.mqtt import MqttTransport
from protocol.transport import Received
from tests.parties import Party, eventually
from tests.worlds import spec

pytestmark = pytest.mark.usefixtures("broker")


def _talkative(port: int, folder: Path) -> str:
    user = "root" if folder.owner() == "root" else None
    return loopback(port, folder, user=user).replace("sys_interval 10", "sys_interval 1")


def test_the_brokers_numbers_arrive_and_follow_what_happens() -> None:
    with Broker(configure=_talkative) as broker:
        party = Party(MqttTransport(BrokerConfig(port=broker.port), "coordinator"))
        for n in range(50):
            party.transport.publish(f"kept/{n}", bytes(1000), retain=True)
        party.transport.subscribe(*TOPICS)
        metrics = BrokerMetrics()
        while metrics.values().get("messages_retained", 0) < 50 or metrics.values().get("bytes_received", 0) < 50_000:
            event = party.next(Received)
            assert metrics.take(event.topic, event.payload)
        assert metrics.version.startswith("mosquitto version")
        values = metrics.values()
        assert values["clients_connected"] == 1
        assert values["publishes_dropped"] == 0
        assert values["silent_seconds"] < 5
        party.transport.close()


def test_the_coordinators_summary_has_the_brokers_numbers(tmp_path: Path) -> None:
    with Broker(configure=_talkative) as broker:
        config = BrokerConfig(port=broker.port)
        coordinator = Coordinator(
            fleet="ward",
            spec=spec(),
            strategy=strategy("relief")(spec(), Settings()),
            pace=Pace(expect=1),
            folder=tmp_path,
            control=MqttTransport(config, "coordinator-control"),
            bulk=MqttTransport(config, "coordinator-bulk"),
        )
        stop = threading.Event()
        thread = threading.Thread(target=coordinator.run, args=(stop,))
        thread.start()
        assert eventually(lambda: coordinator.inlet.broker.values().get("clients_connected", 0) == 2)
        stop.set()
        coordinator.wake()
        thread.join(10)
        late = Party(MqttTransport(config, "operator-jo-status"))
        late.transport.subscribe("relief/v1/ward/coordinator/round")
        told = decode(RoundSummary, late.next(Received).payload)
        assert told.fields["broker"]["publishes_dropped"] == 0
        late.transport.close()


def test_what_is_no_number_is_left_out_and_other_topics_are_not_ours() -> None:
    metrics = BrokerMetrics()
    assert metrics.values() == {}
    assert metrics.take("$SYS/broker/heap/current", b"\xff lots")
    assert metrics.take("$SYS/broker/something/new", b"1")
    assert not metrics.take("relief/v1/f/coordinator/state", b"1")
    assert set(metrics.values()) == {"silent_seconds"}
