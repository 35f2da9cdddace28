"""An upload that the network cuts goes on where it was: a real coordinator, runtime and Mosquitto, a slow link."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker_config.launcher import Broker
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies import Settings, strategy
from device_runtime.config import DeviceConfig
from device_runtime.config import Settings as DeviceSettings
from device_runtime.runtime import Runtime
from models import InputSpec, Local, ModelSpec, partition
from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport
from tests.bench_device import Instant
from tests.slow_link import SlowLink
from tests.worlds import FixedWindows

ROOT = Path(__file__).parent.parent
RATE = 2_500_000  # bytes a second upwards
SPEC = ModelSpec(inputs=(InputSpec("a", 6, 128),), classes=12, widths=(16, 64), bins=16, fusion=1200)
SIZE = 4 * sum(partition(SPEC).size(block) for block in partition(SPEC).blocks)


def until(true: Callable[[], bool], patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class World:
    """One device behind a slow link, a coordinator beside the broker, one round."""

    def __init__(self, broker: Broker, fleet: str, folder: Path, link: SlowLink) -> None:
        self.broker, self.fleet, self.folder = broker, fleet, folder
        meet = BrokerConfig(port=link.port, reconnect_min=0.05, keepalive=30)
        config = DeviceConfig(id="d", modalities=("a",), state=folder / "state", telemetry=0, power=())
        self.runtime = Runtime(
            DeviceSettings(fleet=fleet, broker=meet, device=config),
            MqttTransport(meet, f"d-{fleet}"),
            FixedWindows({"a": np.zeros((8, 6, 128), np.float32)}, np.zeros(8, np.int64)),
            Instant,
        )
        self.coordinator = self.life()

    def life(self) -> Coordinator:
        """A coordinator that goes on with what is in its folder."""
        config = BrokerConfig(port=self.broker.port)
        return Coordinator(
            fleet=self.fleet,
            spec=SPEC,
            strategy=strategy("relief")(SPEC, Settings(epochs=1, local=Local(batch=8))),
            pace=Pace(expect=1, gather=60, margin=120, rounds=1),
            folder=self.folder / "run",
            control=MqttTransport(config, f"control-{self.fleet}"),
            bulk=MqttTransport(config, f"bulk-{self.fleet}"),
        )

    def updates(self) -> int:
        """Of the round that was committed."""
        lines = [json.loads(line) for line in (self.folder / "run" / "metrics.jsonl").read_text().splitlines()]
        return sum(line["updates"] for line in lines if line["kind"] == "round")


def running(target: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread


@pytest.mark.timeout(180)
def test_after_a_cut_in_the_middle_only_the_missing_chunks_travel(broker: Broker, fleet: str, tmp_path: Path) -> None:
    assert 5_000_000 < SIZE < 6_000_000
    with SlowLink(broker.port, RATE) as link:
        world = World(broker, fleet, tmp_path, link)
        coordinator, stop = world.coordinator, threading.Event()
        threads = [running(coordinator.run, stop), running(world.runtime.run)]
        try:
            until(lambda: coordinator.inlet.bytes_up > SIZE / 2)
            link.cut()
            threads[0].join(90)
            assert not threads[0].is_alive()
        finally:
            stop.set()
            coordinator.wake()
            world.runtime.stop()
            for thread in threads:
                thread.join(30)
    assert world.updates() == 1
    print(f"an update of {SIZE} bytes, cut in the middle: {coordinator.inlet.bytes_up} arrived, {link.up} were sent")
    # What was on its way when the wire broke travels again: buffers of the link, and a chunk that was cut in two.
    assert coordinator.inlet.bytes_up < 1.15 * SIZE
    assert link.up < 1.25 * SIZE


@pytest.mark.timeout(180)
def test_a_coordinator_that_was_started_anew_in_between_gets_everything(
    broker: Broker, fleet: str, tmp_path: Path
) -> None:
    with SlowLink(broker.port, RATE) as link:
        world = World(broker, fleet, tmp_path, link)
        first, stop = world.coordinator, threading.Event()
        device, life = running(world.runtime.run), running(first.run, stop)
        try:
            until(lambda: first.inlet.bytes_up > SIZE / 2)
            link.cut()
            stop.set()
            first.wake()
            life.join(30)
            second, stop = world.life(), threading.Event()
            life = running(second.run, stop)
            life.join(90)
            assert not life.is_alive()
        finally:
            stop.set()
            world.runtime.stop()
            for thread in (device, life):
                thread.join(30)
    assert world.updates() == 1
    assert second.inlet.bytes_up > SIZE


@pytest.mark.timeout(180)
def test_a_device_that_was_killed_in_between_sends_only_what_is_missing(broker: Broker, tmp_path: Path) -> None:
    with SlowLink(broker.port, RATE) as link:
        world = World(broker, "bench", tmp_path, link)  # the fleet of tests.bench_device
        coordinator, stop = world.coordinator, threading.Event()
        command = [sys.executable, "-m", "tests.bench_device", str(link.port), "d", str(tmp_path / "state")]
        life, device = running(coordinator.run, stop), subprocess.Popen(command, cwd=ROOT)
        try:
            until(lambda: coordinator.inlet.bytes_up > SIZE / 2)
            device.kill()
            device.wait()
            device = subprocess.Popen(command, cwd=ROOT)
            life.join(90)
            assert not life.is_alive()
        finally:
            stop.set()
            coordinator.wake()
            life.join(30)
            device.terminate()
            device.wait(30)
    assert world.updates() == 1
    assert coordinator.inlet.bytes_up < 1.15 * SIZE  # the last life's way is lost, what came is not
