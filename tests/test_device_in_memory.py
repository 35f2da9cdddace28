"""A whole device over the in-memory transport: what the fleet is told of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from device_runtime import accelerator, calibration, telemetry  # noqa: E402  torch is looked for first
from device_runtime.config import DeviceConfig, Settings  # noqa: E402
from device_runtime.live import LiveSensing  # noqa: E402
from device_runtime.runtime import Runtime  # noqa: E402
from device_runtime.sensing import Sensing  # noqa: E402
from device_runtime.sensors_config import LiveConfig, SensorConfig  # noqa: E402
from models.partition import initial  # noqa: E402
from models.spec import InputSpec, ModelSpec  # noqa: E402
from protocol.chunks import split  # noqa: E402
from protocol.config import BrokerConfig  # noqa: E402
from protocol.memory import MemoryBroker, MemoryTransport  # noqa: E402
from protocol.messages import CoordinatorState, Manifest, Status, decode  # noqa: E402
from protocol.topics import Topics  # noqa: E402
from protocol.transport import Received  # noqa: E402
from sensors.recording import Modality  # noqa: E402
from tests.parties import eventually  # noqa: E402
from tests.test_live_source import Script  # noqa: E402
from tests.worlds import FixedWindows  # noqa: E402

SPEC = ModelSpec((InputSpec("hand", 1, 10), InputSpec("chest", 1, 10)), classes=3, widths=(4,), bins=2, fusion=8)


class Fleet:
    """A coordinator that has said its model and hears what the device says of itself."""

    def __init__(self) -> None:
        self.broker, self.topics = MemoryBroker(), Topics("f")
        self._heard: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._transport = MemoryTransport(self.broker, "c")
        self._transport.open(self._heard.put)
        self._transport.subscribe(self.topics.device("d", "status"))
        state = CoordinatorState(online=True, boot="c", epoch=1, model=SPEC.to_dict())
        self._transport.publish(self.topics.coordinator("state"), state.encode(), retain=True)

    def blocks(self) -> None:
        """Publish all blocks of the model as they are at first."""
        for name, vector in initial(SPEC)[0].items():
            data = vector.astype("<f4").tobytes()
            (chunk,) = split("1.1", data, 1 << 20)
            manifest = Manifest(block=name, version=1, epoch=1, chunks=1, size=len(data), digest=chunk.digest)
            self._transport.publish(self.topics.chunk(name, 0), chunk.encode(), retain=True)
            self._transport.publish(self.topics.manifest(name), manifest.encode(), retain=True)

    def status(self) -> Status:
        """The device's next word on itself."""
        while not isinstance(event := self._heard.get(timeout=30), Received):
            pass
        return decode(Status, event.payload)


@contextmanager
def device(fleet: Fleet, sensing: Sensing, folder: Path, **config: object) -> Iterator[Runtime]:
    own = DeviceConfig.model_validate({"id": "d", "power": (), "state": folder, "telemetry": 0, **config})
    settings = Settings(fleet="f", broker=BrokerConfig(transport="memory"), device=own)
    runtime = Runtime(settings, MemoryTransport(fleet.broker, "d"), sensing)
    thread = threading.Thread(target=runtime.run)
    thread.start()
    try:
        yield runtime
    finally:
        runtime.stop()
        thread.join(20)
        assert not thread.is_alive()


def silent(*names: str) -> tuple[LiveConfig, LiveSensing]:
    """Sensors that never deliver."""
    sensors = [SensorConfig(kind="serial", where="/dev/a", modalities={m: ("0",)}, rate_hz=50) for m in names]
    live = LiveConfig(sensors=tuple(sensors), rate_hz=25.0, window_s=0.4)
    makers = [lambda m=m: Script(Modality(m, ("x",), "m/s2", 50.0)) for m in names]
    return live, LiveSensing(makers, live, subject="d")


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is the CPU: what is measured on it is measured here."""
    real = calibration.measure
    monkeypatch.setattr(calibration, "measure", lambda *a, where, **more: real(*a, where="cpu", **more))
    monkeypatch.setattr(accelerator, "problem", lambda wish: "")
    monkeypatch.setattr(accelerator, "name", lambda where: where)


def test_a_device_whose_sensors_are_silent_yet_measures_what_it_owns_where_it_is_told_to(
    one_gpu: None, tmp_path: Path
) -> None:
    live, sensing = silent("hand")
    fleet = Fleet()
    with device(fleet, sensing, tmp_path, live=live, accelerator="cuda"):
        while not (told := fleet.status()).speed:
            pass
    assert (dict(told.modalities), set(told.speed), told.accelerator) == ({}, {"hand", "shared"}, "cuda")


def test_windows_with_a_label_that_the_model_does_not_know_are_not_counted_and_told_of(tmp_path: Path) -> None:
    y = np.arange(40) % 3
    y[7] = 3
    sensing = FixedWindows({"hand": np.ones((40, 1, 10), np.float32)}, y)
    with device(Fleet(), sensing, tmp_path) as runtime:
        assert eventually(lambda: runtime.agent.status.windows == 39)
        assert runtime.agent.status.scale["hand"].count == 39 * 10
        assert telemetry.values(runtime)["windows_unrecognised"] == 1


def test_what_predicts_gets_the_blocks_of_all_that_it_owns_before_any_sensor_delivers(tmp_path: Path) -> None:
    live, sensing = silent("hand", "chest")
    fleet = Fleet()
    fleet.blocks()
    with device(fleet, sensing, tmp_path, live=live, inference={"kit": tmp_path / "none"}) as runtime:
        assert eventually(lambda: set(runtime.agent.downloads.held) == {"hand", "chest", "shared"})
