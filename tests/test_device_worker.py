"""The thread that computes: it measures what the device owns, and nothing that it is asked for ends it."""

from __future__ import annotations

import hashlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from device_runtime import accelerator, calibration  # noqa: E402  torch is looked for first
from device_runtime.config import DeviceConfig, Settings  # noqa: E402
from device_runtime.downloads import Held  # noqa: E402
from device_runtime.events import StartTraining, TrainingDone, TrainingFailed  # noqa: E402
from device_runtime.joules import ConfiguredWatts  # noqa: E402
from device_runtime.live import LiveSensing  # noqa: E402
from device_runtime.progress import Progress  # noqa: E402
from device_runtime.runtime import Runtime  # noqa: E402
from device_runtime.sensing import Labelled  # noqa: E402
from device_runtime.sensors_config import LiveConfig, SensorConfig  # noqa: E402
from device_runtime.worker import Worker  # noqa: E402
from models.local import Local  # noqa: E402
from models.partition import initial  # noqa: E402
from models.spec import InputSpec, Mode, ModelSpec  # noqa: E402
from protocol.config import BrokerConfig  # noqa: E402
from protocol.memory import MemoryBroker, MemoryTransport  # noqa: E402
from protocol.messages import Assignment, CoordinatorState, Manifest, Status, Update, decode  # noqa: E402
from protocol.topics import Topics  # noqa: E402
from protocol.transport import Received  # noqa: E402
from sensors.recording import Modality  # noqa: E402
from tests.test_live_source import Script  # noqa: E402

SPEC = ModelSpec((InputSpec("hand", 1, 10), InputSpec("chest", 1, 10)), classes=3, widths=(4,), bins=2, fusion=8)
LORA = ModelSpec(SPEC.inputs, classes=3, widths=(4,), bins=2, fusion=8, mode=Mode.LORA)


def held(spec: ModelSpec, center: float = 0.0, width: float = 1.0) -> dict[str, Held]:
    """The blocks of a model and their bases, as they came, with a normalisation for every modality."""
    blocks, bases = initial(spec)
    made = {}
    for name, vector in {**blocks, **{f"{m}.base": v for m, v in bases.items() if len(v)}}.items():
        data = vector.astype("<f4").tobytes()
        own = {"center": [center], "width": [width]} if name in spec.names else {}
        digest = hashlib.sha256(data).digest()
        made[name] = Held(
            Manifest(block=name, version=1, epoch=1, chunks=1, size=len(data), digest=digest, **own), data
        )
    return made


def windows(count: int = 40) -> Labelled:
    rng = np.random.default_rng(0)
    x = {"hand": (rng.standard_normal((count, 1, 10)) * 4 + 9).astype(np.float32)}
    return Labelled(x, rng.integers(0, 3, count), np.arange(count))


class Trainer:
    """A worker whose device owns the hand, and what it says."""

    def __init__(self, folder: Path, spec: ModelSpec = SPEC) -> None:
        self.spec, self.said = spec, queue.SimpleQueue()
        joules = ConfiguredWatts(0.0, time.monotonic)
        self.worker = Worker("d", "b", self.said.put, joules, Progress(folder), wish="cpu")
        self.worker.use_model(spec, ("hand",))

    def next(self, *kinds: type) -> object:
        """The next of these events; others are passed over."""
        while not isinstance(event := self.said.get(timeout=30), kinds):
            pass
        return event

    def round(self, number: int, blocks: dict[str, Held], sensed: Labelled) -> Update:
        """What a round on these blocks and windows brings."""
        a = Assignment(
            id=f"1.{number}", round=number, epoch=1, steps={"hand": 10, "shared": 10}, deadline=60.0,
            versions={"hand": 1, "shared": 1}, training=Local(batch=8, lr=0.01).to_dict(),
        )  # fmt: skip
        self.worker.train(StartTraining(a, ("hand",), blocks, math.inf), sensed)
        event = self.next(TrainingDone, TrainingFailed)
        assert isinstance(event, TrainingDone), event
        return event.update


@pytest.fixture
def hired(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    made: list[Trainer] = []

    def make(**more: object) -> Trainer:
        made.append(Trainer(tmp_path / str(len(made)), **more))
        return made[-1]

    yield make
    for one in made:
        assert one.worker.close(20)


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


# -- features that outlive a round ---------------------------------------------------------------------------


def test_a_renewed_normalisation_trains_on_features_that_are_made_anew(hired: Callable[..., Trainer]) -> None:
    old, new = hired(spec=LORA), hired(spec=LORA)
    old.round(1, held(LORA, center=5.0, width=2.0), windows())
    second, first = (one.round(2, held(LORA, center=9.0, width=4.0), windows()) for one in (old, new))
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    for block, work in first.blocks.items():
        np.testing.assert_array_equal(second.blocks[block].delta.array(), work.delta.array())
