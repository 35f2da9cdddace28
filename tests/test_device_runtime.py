"""A device process at a real broker: it trains what it is told, keeps its word after a kill, and ends when asked."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

from device_runtime.config import DeviceConfig, SourceConfig
from device_runtime.senses import replayed
from device_runtime.sensing import Labelled
from models.local import Local
from models.partition import initial
from models.spec import InputSpec, ModelSpec
from protocol.chunks import Reassembly, split
from protocol.config import BrokerConfig
from protocol.messages import (
    Answer,
    Assignment,
    Chunk,
    CoordinatorState,
    Manifest,
    Order,
    Report,
    Status,
    Telemetry,
    Update,
    decode,
)
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Received

ROOT = Path(__file__).parents[1]
SPEC = ModelSpec(
    (InputSpec("wrist_acc", 3, 128), InputSpec("ecg", 2, 128)), classes=10, widths=(4, 8), bins=2, fusion=16, seed=4
)
STEPS = {"wrist_acc": 6, "shared": 6}


class Conductor:
    """A coordinator's side of the topics, played by hand."""

    def __init__(self, port: int, fleet: str, epoch: int = 1) -> None:
        self.topics, self.epoch = Topics(fleet), epoch
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.parts = Reassembly()
        self.bytes: dict[str, bytes] = {}
        self.transport = MqttTransport(BrokerConfig(port=port), f"conductor-{fleet}-{epoch}")
        self.transport.open(self.events.put)
        assert isinstance(self.events.get(timeout=10), Connected)
        leaves = ("status", "update", "report", "telemetry")
        self.transport.subscribe(*(self.topics.device("+", leaf) for leaf in leaves))

    def say(self, boot: str = "c1") -> None:
        state = CoordinatorState(online=True, boot=boot, epoch=self.epoch, model=SPEC.to_dict())
        self.transport.publish(self.topics.coordinator("state"), state.encode(), retain=True)

    def blocks(self, version: int) -> None:
        for name, vector in initial(SPEC)[0].items():
            data = vector.tobytes()
            chunks = split(f"{self.epoch}.{version}", data, 700)
            manifest = Manifest(
                block=name,
                version=version,
                epoch=self.epoch,
                chunks=len(chunks),
                size=len(data),
                digest=hashlib.sha256(data).digest(),
                center=[0.5] * SPEC.input(name).channels if name != "shared" else [],
                width=[2.0] * SPEC.input(name).channels if name != "shared" else [],
            )
            for chunk in chunks:
                self.transport.publish(self.topics.chunk(name, chunk.index), chunk.encode(), retain=True)
            self.transport.publish(self.topics.manifest(name), manifest.encode(), retain=True)

    def assign(self, device: str, round: int, **more) -> None:
        fields = {"steps": STEPS, "versions": {"wrist_acc": round, "shared": round}, "deadline": 60.0} | more
        a = Assignment(id=f"{self.epoch}.{round}", round=round, epoch=self.epoch, **fields)
        self.transport.publish(self.topics.device(device, "assignment"), a.encode())

    def answer(self, device: str, update: str, accepted: bool = True) -> None:
        self.transport.publish(self.topics.device(device, "answer"), Answer(update=update, accepted=accepted).encode())

    def next(self, kind, wanted=lambda message: True, patience: float = 90.0):
        """The next message of `kind` for which `wanted` holds; others are passed over."""
        until = time.monotonic() + patience
        leaf = {Status: "status", Update: "update", Report: "report", Telemetry: "telemetry"}[kind]
        passed = []
        while True:
            try:
                event = self.events.get(timeout=max(0.01, until - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no such {kind.__name__} in {patience:g} s; passed over: {passed[-5:]}")
            passed.append(event)
            if not isinstance(event, Received) or not event.topic.endswith("/" + leaf) or not event.payload:
                continue
            if kind is Update:
                whole = self.parts.add(decode(Chunk, event.payload))
                if whole is None:
                    continue
                message = decode(Update, whole)
                self.bytes[message.id] = whole
            else:
                message = decode(kind, event.payload)
            if wanted(message):
                return message


@pytest.fixture
def conductor(broker, fleet) -> Iterator[Conductor]:
    played = Conductor(broker.port, fleet)
    yield played
    played.transport.close()


@pytest.fixture
def start(broker, fleet, tmp_path):
    """Starts the device process d1; what still runs at the end is killed."""
    running: list[subprocess.Popen] = []

    def begin(**device) -> subprocess.Popen:
        plain = {"id": "d1", "modalities": ["wrist_acc"], "state": str(tmp_path), "telemetry": 0.5, "tier": "small"}
        lines = [f"{key} = {_toml(value)}" for key, value in (plain | device).items()]
        config = tmp_path / "relief.toml"
        source = '[device.source]\nsubject = "2"\nspeed = inf\n'
        config.write_text(
            f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n[[device]]\n' + "\n".join(lines) + "\n" + source
        )
        command = [sys.executable, "-m", "tools.cli", "device", "run", "--config", str(config)]
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        running.append(child)
        return child

    yield begin
    for child in running:
        child.kill()
        child.wait()
        if child.stderr:
            child.stderr.close()


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, float) else repr(value)


def sensed(count: int) -> Labelled:
    """What the device process senses, at least `count` windows of it."""
    config = DeviceConfig(id="d1", modalities=("wrist_acc",), source=SourceConfig(subject="2", speed=float("inf")))
    stream, _ = replayed(config, trains=True)
    done: queue.SimpleQueue = queue.SimpleQueue()
    stream.open(lambda: done.put(stream.count))
    while done.get(timeout=20) < count:
        pass
    windows = stream.labelled()
    stream.close()
    return windows


def online(status: Status) -> bool:
    return status.online and status.windows > 0


def slack() -> float:
    """How much longer everything takes here because other work wants the same cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def end(child: subprocess.Popen, how: signal.Signals = signal.SIGTERM) -> float:
    """Seconds that the process takes to end."""
    begin = time.monotonic()
    child.send_signal(how)
    assert child.wait(60) == 0
    return time.monotonic() - begin


# -- training ------------------------------------------------------------------------------------------------


def test_an_update_holds_the_very_bits_that_training_these_windows_here_gives(conductor, start):
    torch = pytest.importorskip("torch")
    from device_runtime.trainer import train
    from models.network import Network

    conductor.say()
    conductor.blocks(1)
    start(watts=3.0)
    birth = conductor.next(Status, online)
    assert (birth.tier, birth.modalities, birth.can_train) == ("small", {"wrist_acc": 3}, True)
    conductor.assign("d1", 1, training=Local(batch=8, lr=0.1).to_dict())
    update = conductor.next(Update)

    windows = sensed(update.samples)
    raw, y = windows.x["wrist_acc"][: update.samples], windows.y[: update.samples]
    x = {"wrist_acc": torch.from_numpy((raw - np.float32(0.5)) / np.float32(2.0))}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = train(Network(SPEC), x, torch.from_numpy(y), STEPS, Local(batch=8, lr=0.1), device="d1", round=1)
    torch.set_num_threads(threads)
    assert set(update.blocks) == set(STEPS)
    for block, work in update.blocks.items():
        assert work.delta.array().tobytes() == here.deltas[block].tobytes()
        assert (work.version, work.steps) == (1, 6)
        assert work.seconds > 0
    assert update.loss == pytest.approx(here.loss)
    assert update.joules == pytest.approx(3.0 * sum(w.seconds for w in update.blocks.values()), rel=1e-6)
    assert update.power_source == "configured"


def test_a_device_killed_before_its_answer_sends_the_same_update_after_its_restart(conductor, start):
    pytest.importorskip("torch")
    conductor.say()
    conductor.blocks(1)
    child = start()
    conductor.next(Status, online)
    conductor.assign("d1", 1)
    first = conductor.next(Update)
    body = conductor.bytes[first.id]
    child.kill()
    child.wait()
    start()
    again = conductor.next(Update)
    assert again.id == first.id
    assert conductor.bytes[again.id] == body
    conductor.assign("d1", 1)  # the coordinator sends it once more at the birth; it is done already
    conductor.answer("d1", first.id)
    conductor.next(Telemetry, lambda t: t.values["windows"] > 0)
    conductor.blocks(2)
    conductor.assign("d1", 2)
    assert conductor.next(Update, lambda u: u.id != first.id).round == 2


def test_an_answered_update_leaves_the_outbox(conductor, start, tmp_path):
    pytest.importorskip("torch")
    conductor.say()
    conductor.blocks(1)
    start()
    conductor.next(Status, online)
    conductor.assign("d1", 1)
    update = conductor.next(Update)
    assert len(list((tmp_path / "d1" / "outbox").iterdir())) == 1
    conductor.answer("d1", update.id)
    conductor.next(Telemetry, lambda t: t.values["outbox_updates"] == 0 and t.values["counts"]["updates accepted"] == 1)
    assert list((tmp_path / "d1" / "outbox").iterdir()) == []


def test_a_budget_in_seconds_ends_training_at_a_step_border(conductor, start):
    pytest.importorskip("torch")
    conductor.say()
    conductor.blocks(1)
    start()
    conductor.next(Status, online)
    conductor.assign("d1", 1, steps={"wrist_acc": 100_000, "shared": 100_000}, seconds=0.5)
    update = conductor.next(Update)
    assert update.partial
    assert 0 < update.blocks["shared"].steps < 100_000
    assert 0.4 < update.seconds < 2.0 * slack()


def test_a_new_life_of_the_coordinator_is_told_the_birth(conductor, start):
    conductor.say("c1")
    start(train=False)
    first = conductor.next(Status, lambda s: s.online)
    conductor.say("c2")
    assert conductor.next(Status, lambda s: s.online).boot == first.boot


# -- bad input -----------------------------------------------------------------------------------------------


def test_messages_that_are_none_are_counted_and_kill_nothing(conductor, start):
    conductor.say()
    start(train=False)
    conductor.next(Status, lambda s: s.online)
    t, publish = conductor.topics, conductor.transport.publish
    bad = [b"\xc1", b"", msgpack.packb({"id": 7}), msgpack.packb([1]), os.urandom(100)]
    for payload in bad:
        for leaf in ("assignment", "answer", "order", "label"):
            publish(t.device("d1", leaf), payload)
        publish(t.coordinator("state"), payload)
        publish(t.manifest("wrist_acc"), payload)
        publish(t.chunk("wrist_acc", 0), payload)
    conductor.blocks(1)
    conductor.assign("d1", 1)
    report = conductor.next(Report)
    assert (report.kind, report.ok) == ("declined", False)
    told = conductor.next(Telemetry, lambda t: t.values["counts"].get("refused messages", 0) >= 4 * 5)
    assert told.values["counts"]["assignments declined"] == 1


def test_an_order_nobody_knows_how_to_carry_out_is_answered(conductor, start):
    conductor.say()
    start(train=False)
    conductor.next(Status, lambda s: s.online)
    order = Order(id="o1", kind="update_runtime")
    conductor.transport.publish(conductor.topics.device("d1", "order"), order.encode())
    report = conductor.next(Report)
    assert (report.id, report.ok) == ("o1", False)


def test_a_device_evaluates_and_measures_itself_when_it_is_ordered_to(conductor, start):
    torch = pytest.importorskip("torch")
    from models.network import Network

    conductor.say()
    conductor.blocks(1)
    start()
    conductor.next(Telemetry, lambda t: t.values["windows"] == 480)
    to = conductor.topics.device("d1", "order")
    conductor.transport.publish(to, Order(id="o1", kind="evaluate").encode())
    report = conductor.next(Report)
    assert report.ok, report.reason
    windows = sensed(480)
    x = torch.from_numpy((windows.x["wrist_acc"] - np.float32(0.5)) / np.float32(2.0))
    with torch.no_grad():
        said = Network(SPEC)({"wrist_acc": x}).argmax(dim=1).numpy()
    assert report.values["accuracy"] == pytest.approx((said == windows.y).mean())
    assert np.sum(report.values["confusion"]) == 480
    assert report.values["versions"] == {"wrist_acc": 1, "shared": 1}

    conductor.transport.publish(to, Order(id="o2", kind="profile").encode())
    report = conductor.next(Report)
    assert (report.id, report.ok) == ("o2", True)
    assert set(report.values["seconds_per_window"]) == {"wrist_acc", "shared"}


# -- beginning and end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_device_ends_within_two_seconds_and_says_goodbye(conductor, start, how):
    conductor.say()
    child = start(train=False)
    birth = conductor.next(Status, lambda s: s.online)
    assert end(child, how) < 2.0 * slack()
    death = conductor.next(Status, lambda s: not s.online)
    assert (death.boot, death.reason) == (birth.boot, how.name)


def test_a_device_ends_within_two_seconds_in_the_middle_of_training(conductor, start):
    pytest.importorskip("torch")
    conductor.say()
    conductor.blocks(1)
    child = start()
    conductor.next(Status, online)
    conductor.assign("d1", 1, steps={"wrist_acc": 10**6, "shared": 10**6})
    conductor.next(Telemetry)
    conductor.next(Telemetry)
    assert end(child) < 2.0 * slack()
    assert "CPU: " in child.stderr.read()


@pytest.mark.timeout(300)
def test_a_device_that_is_restarted_in_a_round_goes_on_with_it(conductor, start):
    pytest.importorskip("torch")
    conductor.say()
    conductor.blocks(1)
    steps = {"wrist_acc": 6000, "shared": 6000}
    child = start()
    conductor.next(Status, online)
    conductor.next(Telemetry, lambda t: t.values["windows"] == 480)
    conductor.assign("d1", 1, steps=steps, deadline=300.0)
    conductor.next(Telemetry)
    conductor.next(Telemetry)
    end(child)
    child = start()
    conductor.next(Telemetry, lambda t: t.values["windows"] == 480)
    conductor.assign("d1", 1, steps=steps, deadline=300.0)
    update = conductor.next(Update, patience=180)
    assert not update.partial
    assert update.blocks["shared"].steps == 6000
    end(child)
    assert "goes on at step" in child.stderr.read()


def test_a_killed_device_is_buried_by_its_will(conductor, start):
    conductor.say()
    child = start(train=False, will_delay=0)
    birth = conductor.next(Status, lambda s: s.online)
    child.kill()
    death = conductor.next(Status, lambda s: not s.online)
    assert (death.boot, death.reason) == (birth.boot, "connection lost")


def test_an_idle_device_that_cannot_train_is_small_and_sleeps(conductor, start):
    conductor.say()
    conductor.blocks(1)
    child = start(train=False, telemetry=1.0)
    conductor.next(Status, lambda s: s.online and s.windows > 0)
    told = [conductor.next(Telemetry).values]
    while len(told) < 2 or told[-1]["cpu_seconds"] - told[-2]["cpu_seconds"] > 0.1:
        told.append(conductor.next(Telemetry).values)  # the recording is still being read
        assert len(told) < 30, "it never came to rest"
    told += [conductor.next(Telemetry).values for _ in range(2)]
    busy = told[-1]["cpu_seconds"] - told[-3]["cpu_seconds"]
    assert busy < 0.05 * 2.0, f"{busy:.3f} s of CPU in two idle seconds"
    assert told[-1]["memory_bytes"] < 60 * 1024 * 1024
    mapped = Path(f"/proc/{child.pid}/maps").read_text()
    assert "libtorch" not in mapped


def test_a_device_id_that_the_file_does_not_have_is_named(tmp_path):
    config = tmp_path / "relief.toml"
    config.write_text('[[device]]\nid = "a"\n[[device]]\nid = "b"\n')
    command = [sys.executable, "-m", "tools.cli", "device", "run", "--config", str(config), "--device", "c"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 10
    assert "no [[device]] has the id 'c': it has a, b" in done.stderr


def test_an_allowance_in_joules_ends_training_at_a_step_border(conductor, start):
    pytest.importorskip("torch")
    conductor.say()
    conductor.blocks(1)
    start(watts=4.0)
    conductor.next(Status, online)
    conductor.assign("d1", 1, steps={"wrist_acc": 100_000, "shared": 100_000}, joules=1.2)
    update = conductor.next(Update)
    assert update.partial
    assert 0.8 * 1.2 < update.joules < 1.5 * 1.2 * slack()


def test_joules_of_an_estimate_are_never_called_measured(conductor, start):
    pytest.importorskip("torch")
    conductor.say()
    conductor.blocks(1)
    start(power=["estimate"], idle_watts=1.0)  # at rest as somebody measured it: other work may run here
    conductor.next(Status, lambda s: online(s) and s.idle_watts > 0)
    conductor.assign("d1", 1, steps={"wrist_acc": 2000, "shared": 2000}, seconds=1.0)
    update = conductor.next(Update)
    assert update.power_source == "estimate"
    assert update.joules > 0
    told = conductor.next(Telemetry, lambda t: "watts" in t.values).values
    assert told["measured"] is False
