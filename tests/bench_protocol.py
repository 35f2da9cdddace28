"""What the wire costs: rounds of 8 devices with 100 KB over Mosquitto on loopback, by paho alone and by our transport.

`python -m tests.bench_protocol` prints the table; `bench()` is what `make bench` collects.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport
from protocol.transport import Connected, Event, Received

DEVICES = 8
MODEL = 100_000  # bytes down by one broadcast, and up from every device
ROUNDS = 60
PINGS = 300
PROMISED_MS = 15.0


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, floor (name, value), promise, ok. Floors are measured in the same run."""
    with Broker() as broker:
        floor, rounds = statistics.median(paho_rounds(broker)), statistics.median(_transport_rounds(broker))
        bare, pings = _paho_pings(broker), _pings(broker)
    rows = [(f"transport round, {DEVICES} devices x {MODEL // 1000} KB, median", rounds, floor, PROMISED_MS)]
    for name, share in (("median", 50), ("99 of 100", 99)):
        value, least = (statistics.quantiles(times, n=100)[share - 1] for times in (pings, bare))
        # Where other work delays everybody, the floor tells by how much.
        rows.append((f"latency of 200 B, {name}", value, least, max(1.0 if share == 50 else 5.0, 2 * least)))
    return [
        {
            "name": name,
            "value": round(value, 3),
            "unit": "ms",
            "floor": {"name": "paho alone", "value": round(least, 3)},
            "promise": round(promise, 3),
            "ok": value <= promise,
        }
        for name, value, least, promise in rows
    ]


def paho_rounds(broker: Broker) -> list[float]:
    """Milliseconds a round: one broadcast of the model, every device answers with as much."""
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    payload = bytes(MODEL)
    clients = [_paho(broker, "c", lambda c, u, m: arrived.put(len(m.payload)), "floor/up/+")]
    for n in range(DEVICES):
        answer = f"floor/up/{n}"
        clients.append(_paho(broker, f"d{n}", lambda c, u, m, a=answer: c.publish(a, m.payload, qos=1), "floor/down"))

    def one() -> None:
        clients[0].publish("floor/down", payload, qos=1)
        for _ in range(DEVICES):
            assert arrived.get(timeout=10) == MODEL

    times = _timed(one)
    for each in clients:
        each.disconnect()
        each.loop_stop()
    return times


def _paho_pings(broker: Broker) -> list[float]:
    """Milliseconds from one bare client's publish to another's callback."""
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    one = _paho(broker, "one", lambda *_: None, "floor/none")
    other = _paho(broker, "other", lambda c, u, m: arrived.put(1), "floor/ping")

    def ping() -> None:
        one.publish("floor/ping", bytes(200), qos=1)
        arrived.get(timeout=5)

    times = _timed(ping, PINGS)
    for each in (one, other):
        each.disconnect()
        each.loop_stop()
    return times


def _paho(broker: Broker, name: str, on_message: Callable[..., None], topic: str) -> Client:
    """A bare client that is subscribed."""
    ready = threading.Event()
    made = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
    made.on_message = on_message
    made.on_subscribe = lambda *_: ready.set()
    made.connect(broker.host, broker.port)
    made.loop_start()
    made.subscribe(topic, qos=1)
    assert ready.wait(5)
    return made


def _transport_rounds(broker: Broker) -> list[float]:
    """The same through our transport, each device with a worker thread behind its inbox."""
    config, payload = BrokerConfig(port=broker.port), bytes(MODEL)
    arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
    coordinator = MqttTransport(config, "coordinator")
    coordinator.open(arrived.put)
    assert isinstance(arrived.get(timeout=5), Connected)
    coordinator.subscribe("bench/up/+")
    devices, workers = [], []
    for n in range(DEVICES):
        inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        device = MqttTransport(config, f"device{n}")
        device.open(inbox.put)
        assert isinstance(inbox.get(timeout=5), Connected)
        device.subscribe("bench/down")
        workers.append((inbox, threading.Thread(target=_echo, args=(device, inbox, f"bench/up/{n}"), daemon=True)))
        workers[-1][1].start()
        devices.append(device)
    time.sleep(0.2)  # subscriptions have no event of their own

    def one() -> None:
        coordinator.publish("bench/down", payload)
        for _ in range(DEVICES):
            event = arrived.get(timeout=10)
            assert isinstance(event, Received) and len(event.payload) == MODEL

    times = _timed(one)
    for inbox, worker in workers:
        inbox.put(None)
        worker.join()
    for transport in (coordinator, *devices):
        transport.close()
    return times


def _echo(device: MqttTransport, inbox: queue.SimpleQueue[Event | None], topic: str) -> None:
    while (event := inbox.get()) is not None:
        if isinstance(event, Received):
            device.publish(topic, event.payload)


def _pings(broker: Broker) -> list[float]:
    """Milliseconds from publish to the subscriber's queue, one message at a time."""
    config = BrokerConfig(port=broker.port)
    arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
    one, other = MqttTransport(config, "ping"), MqttTransport(config, "pong")
    ready: queue.SimpleQueue[Event] = queue.SimpleQueue()
    one.open(ready.put)
    other.open(arrived.put)
    ready.get(timeout=5), arrived.get(timeout=5)
    other.subscribe("bench/ping")
    time.sleep(0.2)

    def ping() -> None:
        one.publish("bench/ping", bytes(200))
        arrived.get(timeout=5)

    times = _timed(ping, PINGS)
    one.close()
    other.close()
    return times


def _timed(once: Callable[[], None], times: int = ROUNDS) -> list[float]:
    for _ in range(3):
        once()
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        once()
        measured.append(1000 * (time.perf_counter() - start))
    return measured


if __name__ == "__main__":
    for row in bench():
        print(
            f"{row['name']:<48} {row['value']:>8} {row['unit']}   {row['floor']['name']} {row['floor']['value']}"
            f"   promised {row['promise']}   {'ok' if row['ok'] else 'TOO SLOW'}"
        )
