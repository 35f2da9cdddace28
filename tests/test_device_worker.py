"""The thread that computes: it measures what the device owns, and nothing that it is asked for ends it."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from device_runtime import accelerator, calibration  # noqa: E402  torch is looked for first
from device_runtime.config import DeviceConfig, Settings  # noqa: E402
from device_runtime.live import LiveSensing  # noqa: E402
from device_runtime.runtime import Runtime  # noqa: E402
from device_runtime.sensors_config import LiveConfig, SensorConfig  # noqa: E402
from models.spec import InputSpec, ModelSpec  # noqa: E402
from protocol.config import BrokerConfig  # noqa: E402
from protocol.memory import MemoryBroker, MemoryTransport  # noqa: E402
from protocol.messages import CoordinatorState, Status, decode  # noqa: E402
from protocol.topics import Topics  # noqa: E402
from protocol.transport import Received  # noqa: E402
from sensors.recording import Modality  # noqa: E402
from tests.test_live_source import Script  # noqa: E402

SPEC = ModelSpec((InputSpec("hand", 1, 10), InputSpec("chest", 1, 10)), classes=3, widths=(4,), bins=2, fusion=8)


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
    sensor = SensorConfig(kind="serial", where="/dev/a", modalities={"hand": ("0",)}, rate_hz=50)
    live = LiveConfig(sensors=(sensor,), rate_hz=25.0, window_s=0.4)
    config = DeviceConfig(id="d", live=live, accelerator="cuda", power=(), state=tmp_path, telemetry=0)
    broker, topics = MemoryBroker(), Topics("f")
    coordinator, heard = MemoryTransport(broker, "c"), queue.SimpleQueue()
    coordinator.open(heard.put)
    coordinator.subscribe(topics.device("d", "status"))
    state = CoordinatorState(online=True, boot="c", epoch=1, model=SPEC.to_dict())
    coordinator.publish(topics.coordinator("state"), state.encode(), retain=True)
    silent = Script(Modality("hand", ("x",), "m/s2", 50.0))
    runtime = Runtime(
        Settings(fleet="f", broker=BrokerConfig(transport="memory"), device=config),
        MemoryTransport(broker, "d"),
        LiveSensing([lambda: silent], live, subject="d"),
    )
    thread = threading.Thread(target=runtime.run)
    thread.start()
    try:
        told = Status(online=False, boot="")
        while not told.speed:
            event = heard.get(timeout=30)
            if isinstance(event, Received):
                told = decode(Status, event.payload)
        assert (dict(told.modalities), set(told.speed), told.accelerator) == ({}, {"hand", "shared"}, "cuda")
    finally:
        runtime.stop()
        thread.join(20)
        coordinator.close()
