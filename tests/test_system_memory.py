"""The whole system in one process over the in-memory transport: real coordinator, real runtimes, real training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.checkpoint import latest
from coordinator.commit import fold_round
from coordinator.events import UpdateHead
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies import Settings, strategy
from device_runtime.config import DeviceConfig
from device_runtime.config import Settings as DeviceSettings
from device_runtime.runtime import Runtime
from device_runtime.trainer import train
from models import SHARED, Local, Mode, ModelSpec, initial
from models.network import Network
from protocol.config import BrokerConfig
from protocol.memory import MemoryBroker, MemoryTransport
from tests.worlds import FixedWindows, spec, windows

OWNED = {"a": ("torso", "arm"), "b": ("arm", "leg"), "c": ("leg",)}


def coordinator(broker: MemoryBroker, folder: Path, of: ModelSpec, rounds: int, method: str = "relief") -> Coordinator:
    local = Local(batch=8, seed=3, double=True, wire="<f8")
    return Coordinator(
        fleet="test",
        spec=of,
        strategy=strategy(method)(of, Settings(epochs=1, local=local)),
        pace=Pace(expect=len(OWNED), gather=30, margin=60, rounds=rounds),
        folder=folder,
        control=MemoryTransport(broker, "coordinator-control"),
        bulk=MemoryTransport(broker, "coordinator-bulk"),
    )


@contextmanager
def devices(broker: MemoryBroker, folder: Path, of: ModelSpec, prefix: str = "") -> Iterator[None]:
    """Three device runtimes in threads."""
    runtimes = []
    for n, (name, owned) in enumerate(OWNED.items()):
        settings = DeviceSettings(
            fleet="test",
            broker=BrokerConfig(transport="memory"),
            device=DeviceConfig(id=prefix + name, modalities=owned, state=folder, telemetry=0),
        )
        sensing = FixedWindows(*windows(of, 24 + 8 * n, seed=n, owned=owned))
        runtimes.append(Runtime(settings, MemoryTransport(broker, prefix + name), sensing))
    threads = [threading.Thread(target=r.run, daemon=True) for r in runtimes]
    for t in threads:
        t.start()
    try:
        yield
    finally:
        for r in runtimes:
            r.stop()
        for t in threads:
            t.join(5)


def by_hand(of: ModelSpec, rounds: int, lines: list[dict]) -> dict[str, np.ndarray]:
    """The same rounds without protocol, journal or threads: train every device, fold, again."""
    local = Local(batch=8, seed=3, double=True, wire="<f8")
    blocks = {b: v.astype("f8") for b, v in initial(of)[0].items()}
    held = {name: windows(of, 24 + 8 * n, seed=n, owned=owned) for n, (name, owned) in enumerate(OWNED.items())}
    scales = {}
    for m in of.names:
        x = np.concatenate([w[0][m] for w in held.values() if m in w[0]]).astype("f8")
        scales[m] = (x.mean(axis=(0, 2)), x.std(axis=(0, 2)))
    method = strategy("relief")(of, Settings(epochs=1, local=local))
    for round in range(1, rounds + 1):
        sent, heads = {}, []
        for name in sorted(OWNED):
            x, y = held[name]
            network = Network(of).double()
            for b, v in blocks.items():
                network.load(b, v)
            normal = {
                m: (v - scales[m][0].astype("f4")[:, None]) / scales[m][1].astype("f4")[:, None] for m, v in x.items()
            }
            steps = lines[round - 1]["devices"][name]["steps"]
            done = train(
                network,
                {m: torch.from_numpy(v.astype("f4")) for m, v in normal.items()},
                torch.from_numpy(y),
                steps,
                local,
                device=name,
                round=round,
                stop=lambda: False,
            )
            for b, d in done.deltas.items():
                sent[name, b] = np.asarray(d)
            taken = {b: (0, s) for b, s in done.steps.items() if b in done.deltas}
            heads.append(UpdateHead(name, name, "", round, 1, "", taken, len(y)))
        out = fold_round(method, blocks, dict.fromkeys(blocks, 0), heads, lambda h, b, sent=sent: sent[h.device, b])
        blocks.update(out.blocks)
    return blocks


@pytest.mark.parametrize("mode", list(Mode))
def test_rounds_over_the_protocol_give_the_weights_of_the_same_rounds_by_hand(tmp_path: Path, mode: Mode) -> None:
    of, broker = spec(3, mode), MemoryBroker()
    with devices(broker, tmp_path / "state", of):
        coordinator(broker, tmp_path / "run", of, 3).run(threading.Event())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["updates"] for line in lines] == [3, 3, 3]
    saved = latest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    for block, vector in by_hand(of, 3, lines).items():
        assert np.allclose(saved.blocks[block], vector, rtol=0, atol=1e-5), block


def test_a_fleet_that_has_no_time_for_a_step_raises_an_alarm_until_it_has(tmp_path: Path) -> None:
    of, broker = spec(3), MemoryBroker()
    with devices(broker, tmp_path / "state", of):
        one = coordinator(broker, tmp_path / "run", of, 2)
        plenty = one.strategy.settings
        one.strategy.settings = replace(plenty, bytes=1.0)
        thread = threading.Thread(target=one.run, args=(threading.Event(),))
        thread.start()
        until(lambda: "budget" in one.alarms)
        assert "none of 3 devices has time for a single step" in one.alarms["budget"]
        assert one.core.round == 1
        one.strategy.settings = plenty
        with devices(broker, tmp_path / "others", of, prefix="new-"):  # somebody new: it is tried again
            thread.join(20)
        assert not thread.is_alive()
    assert one.core.finished
    assert "budget" not in one.alarms


def test_a_coordinator_that_starts_again_continues_the_run(tmp_path: Path) -> None:
    of, broker = spec(3), MemoryBroker()
    with devices(broker, tmp_path / "state", of):
        first = coordinator(broker, tmp_path / "run", of, 0)
        stop = threading.Event()
        thread = threading.Thread(target=first.run, args=(stop,))
        thread.start()
        until(lambda: first.core.round >= 4)
        stop.set()
        first.wake()
        thread.join(10)
        reached, epoch = first.core.round, first.core.epoch
        second = coordinator(broker, tmp_path / "run", of, reached + 1)
        second.run(threading.Event())
    assert second.core.round == reached + 2
    assert second.core.epoch == epoch
    assert all(second.core.versions[b] >= first.core.versions[b] for b in first.core.versions)


def test_an_update_of_garbage_is_refused_counted_and_changes_nothing(tmp_path: Path) -> None:
    of, broker = spec(3), MemoryBroker()
    stranger = MemoryTransport(broker, "x")
    stranger.open(lambda event: None)
    run, stop = coordinator(broker, tmp_path / "run", of, 0), threading.Event()
    thread = threading.Thread(target=run.run, args=(stop,))
    with devices(broker, tmp_path / "state", of):
        thread.start()
        until(lambda: run.history.rounds >= 1)
        for payload in (b"\xc1", b"\x80", bytes(5000)):
            stranger.publish("relief/v1/test/device/x/update", payload)
            stranger.publish("relief/v1/test/device/x/status", payload)
        reached = run.history.rounds
        until(lambda: run.history.rounds >= reached + 2)
        stop.set()
        run.wake()
        thread.join(20)
    stranger.close()
    assert sum(run.refusals.counts.values()) == 6
    assert "x" not in run.core.registry.devices


def test_an_absent_modality_is_never_changed_by_those_who_lack_it(tmp_path: Path) -> None:
    of, broker = spec(4), MemoryBroker()  # nobody owns the fourth, ecg
    with devices(broker, tmp_path / "state", of):
        run = coordinator(broker, tmp_path / "run", of, 2)
        run.run(threading.Event())
    fresh = initial(of)[0]
    assert np.array_equal(run.blocks["ecg"], fresh["ecg"].astype("f8"))
    assert run.core.versions["ecg"] == 0
    assert not np.array_equal(run.blocks[SHARED], fresh[SHARED].astype("f8"))


def until(condition: object, patience: float = 20.0) -> None:
    """Wait for something another thread brings about."""
    end = time.monotonic() + patience
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
