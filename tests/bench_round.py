"""A whole protocol round without training: assign, download, upload, journal, acknowledge, fold, publish.

Eight device processes with the real runtime, the real coordinator, Mosquitto on loopback, a model of about 100 KB.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

from broker_config.launcher import Broker
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies import Settings, strategy
from models import InputSpec, Local, ModelSpec, partition
from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport
from tests.bench_protocol import paho_rounds
from tests.crew import Crew

DEVICES = 8
ROUNDS = 60
PROMISED_MS = 15.0  # where paho alone takes FLOOR_MS for the same bytes; a slower machine is allowed as many times more
FLOOR_MS = 4.0
OVERHEAD = 0.02  # of the trained tensors' bytes


def spec() -> ModelSpec:
    """One modality and the shared block, 25,000 float32 values in all."""
    return ModelSpec(inputs=(InputSpec("a", 6, 128),), classes=12, widths=(16, 32), bins=8, fusion=84)


def bench() -> list[dict[str, Any]]:
    """Rows for `make bench`."""
    with tempfile.TemporaryDirectory() as folder, Broker() as broker:
        floor = statistics.median(paho_rounds(broker))
        lines = run(broker, Path(folder), ROUNDS)
    promise = PROMISED_MS * max(1.0, floor / FLOOR_MS)
    beside = {"name": "paho alone", "value": round(floor, 2)}
    began = [line["began"] for line in lines]
    times = [1000 * (b - a) for a, b in itertools.pairwise(began[5:])]
    model = 4 * sum(partition(spec()).size(b) for b in partition(spec()).blocks)
    sent = statistics.median(line["bytes_up"] for line in lines) / DEVICES
    return [
        {
            "name": f"protocol round, {DEVICES} device processes x {model // 1000} KB, median",
            "value": round(statistics.median(times), 2),
            "unit": "ms",
            "floor": beside,
            "promise": round(promise, 1),
            "ok": statistics.median(times) <= promise,
        },
        {
            "name": "protocol round, 9 of 10 within",
            "value": round(statistics.quantiles(times, n=10)[8], 2),
            "unit": "ms",
            "floor": beside,
            "promise": round(3 * promise, 1),
            "ok": statistics.quantiles(times, n=10)[8] <= 3 * promise,
        },
        {
            "name": "bytes on the wire above the trained tensors",
            "value": round(100 * (sent / model - 1), 2),
            "unit": "%",
            "floor": {"name": "tensors alone", "value": 0.0},
            "promise": 100 * OVERHEAD,
            "ok": sent / model - 1 <= OVERHEAD,
        },
    ]


def run(broker: Broker, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """`rounds` rounds of DEVICES processes; the coordinator's metrics lines. RuntimeError where a device fails."""
    of, config, stop = spec(), BrokerConfig(port=broker.port), threading.Event()
    coordinator = Coordinator(
        fleet="bench",
        spec=of,
        strategy=strategy("relief")(of, Settings(epochs=1, local=Local(batch=8))),
        pace=Pace(expect=DEVICES, gather=60, rounds=rounds),
        folder=folder / "run",
        control=MqttTransport(config, "coordinator-control"),
        bulk=MqttTransport(config, "coordinator-bulk"),
    )

    def give_up() -> None:
        stop.set()
        coordinator.wake()

    with Crew(folder, give_up) as crew:
        for n in range(DEVICES):
            crew.start(f"d{n}", "tests.bench_device", str(broker.port), f"d{n}", str(folder / "state"))
        coordinator.run(stop)
        crew.check()
    if coordinator.stopped:
        raise RuntimeError(coordinator.stopped)
    text = (folder / "run" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "round"]


if __name__ == "__main__":
    print(json.dumps(bench(), indent=1))
