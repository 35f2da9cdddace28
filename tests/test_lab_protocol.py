"""The simulator and a real fleet over Mosquitto come to the same weights: same core, same rule, same sampling."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from broker_config.launcher import Broker
from coordinator.checkpoint import latest
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies.base import Plan, Settings
from coordinator.strategies.relief import CohortOnly
from coordinator.work import Budget, Member
from device_runtime.config import DeviceConfig
from device_runtime.config import Settings as DeviceSettings
from device_runtime.runtime import Runtime
from models import SHARED, Local, Mode, ModelSpec, initial
from models.partition import Vector
from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport
from sensors.windows import Windows
from tests.worlds import FixedWindows, spec, windows
from tools.lab.engine import Engine
from tools.lab.fleet import Fleet, Tier
from tools.lab.simulate import Run
from tools.lab.world import LabDevice, World

OWNED = {"a": ("torso", "arm"), "b": ("arm", "leg"), "c": ("leg",)}
COUNTS = {"a": 24, "b": 32, "c": 40}
SCRIPT = {"a": {"torso": 5, "arm": 3, SHARED: 5}, "b": {"leg": 4, SHARED: 6}, "c": {"leg": 2, SHARED: 2}}


class Scripted(CohortOnly):
    """Everybody gets the script's steps in every round, and time enough for them on a busy machine."""

    name = "scripted"

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        return {m.id: Plan(SCRIPT[m.id], Budget(), self.local(), 60.0) for m in members}


def held() -> dict[str, tuple[dict[str, Vector], Vector]]:
    return {name: windows(spec(3), COUNTS[name], seed=n, owned=owned) for n, (name, owned) in enumerate(OWNED.items())}


def scales() -> dict[str, tuple[list[float], list[float]]]:
    """Mean and spread per channel over a modality's owners, known from the start."""
    found = {}
    for m in spec(3).names:
        wide = np.concatenate([x[m] for x, _ in held().values() if m in x]).astype(np.float64)
        found[m] = wide.mean(axis=(0, 2)).tolist(), wide.std(axis=(0, 2)).tolist()
    return found


def over_mqtt(of: ModelSpec, local: Local, rounds: int, broker: Broker, fleet: str, folder: Path) -> dict[str, Vector]:
    """Real coordinator, real runtimes, real Mosquitto."""
    config = BrokerConfig(port=broker.port)
    with devices(fleet, config, folder / "state"):
        Coordinator(
            fleet=fleet,
            spec=of,
            strategy=Scripted(of, Settings(local=local)),
            pace=Pace(expect=len(OWNED), gather=60, rounds=rounds),
            folder=folder / "run",
            control=MqttTransport(config, f"coordinator-control-{fleet}"),
            bulk=MqttTransport(config, f"coordinator-bulk-{fleet}"),
            scales=scales(),
        ).run(threading.Event())
    saved = latest(folder / "run" / "checkpoints")
    assert saved is not None
    return saved.blocks


@contextmanager
def devices(fleet: str, config: BrokerConfig, folder: Path) -> Iterator[None]:
    runtimes = []
    for name, (x, y) in held().items():
        device = DeviceConfig(id=name, modalities=OWNED[name], state=folder, telemetry=0)
        settings = DeviceSettings(fleet=fleet, broker=config, device=device)
        runtimes.append(Runtime(settings, MqttTransport(config, f"{fleet}-{name}"), FixedWindows(x, y)))
    threads = [threading.Thread(target=r.run, daemon=True) for r in runtimes]
    for t in threads:
        t.start()
    try:
        yield
    finally:
        for r in runtimes:
            r.stop()
        for t in threads:
            t.join(10)


def in_the_lab(of: ModelSpec, local: Local, rounds: int) -> dict[str, Vector]:
    """The same in virtual time."""
    own = held()
    x: dict[str, Vector] = {i.name: np.zeros((sum(COUNTS.values()), 3, 16), np.float32) for i in of.inputs}
    rows, start = {}, 0
    for name, (values, y) in own.items():
        rows[name] = np.arange(start, start + len(y))
        for m, v in values.items():
            x[m][rows[name]] = v
        start += len(y)
    for m, (center, width) in scales().items():
        x[m] = (x[m] - np.float32(center)[:, None]) / np.float32(width)[:, None]
    y = np.concatenate([labels for _, labels in own.values()])
    train = Windows(x, y, np.zeros(len(y), np.int64), np.zeros(len(y), np.float32), ("1",))
    members = tuple(LabDevice(name, "t", OWNED[name], "1", rows[name], 1e9, 0.0, 0.0, 0.0, 0.0, 0.0) for name in OWNED)
    fleet = Fleet(name="x", dataset="x", tier=[Tier(name="t", devices=3, modalities=["*"], speed=1.0)])
    place = World(fleet, of, members, train, train, {"test": lambda *a, **k: {}})  # type: ignore[dict-item]
    trainable, frozen = initial(of)
    start_blocks = {b: v.astype("f8" if local.double else "f4") for b, v in trainable.items()}
    run = Run(place, Scripted(of, Settings(local=local)), Engine(of, x, y, frozen), start_blocks, frozen, rounds)
    run.go()
    return run.blocks


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_scripted_round_in_float64_gives_the_same_weights_in_the_lab_and_over_mqtt(
    mode: Mode, dropout: float, broker: Broker, fleet: str, tmp_path: Path
) -> None:
    of = spec(3, mode)
    local = Local(batch=8, seed=3, double=True, wire="<f8", dropout=dropout)
    real, simulated = over_mqtt(of, local, 1, broker, fleet, tmp_path), in_the_lab(of, local, 1)
    before = initial(of)[0]
    assert max(np.abs(values - before[block]).max() for block, values in real.items()) > 1e-2, "nothing was learned"
    for block, values in real.items():
        np.testing.assert_allclose(simulated[block], values, rtol=0, atol=1e-6)


def test_ten_rounds_in_float32_drift_apart_by_rounding_only(
    broker: Broker, fleet: str, tmp_path: Path, record_property: pytest.RecordProperty | object
) -> None:
    of, local = spec(3), Local(batch=8, seed=3)
    real, simulated = over_mqtt(of, local, 10, broker, fleet, tmp_path), in_the_lab(of, local, 10)
    drift = max(float(np.abs(simulated[b] - v).max()) for b, v in real.items())
    size = max(float(np.abs(v).max()) for v in real.values())
    record_property("float32 drift over ten rounds", f"{drift:.2e} of weights up to {size:.2f}")  # type: ignore[operator]
    print(f"float32 drift over ten rounds: {drift:.2e} of weights up to {size:.2f}")
    assert drift < 1e-4 * size
