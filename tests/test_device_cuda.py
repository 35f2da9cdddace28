"""Training on a GPU gives what the CPU gives, shortcuts included, and a device uses the one that it is told to.

Every law is stated for a processor and run on the CPU as well, so that the tests themselves are known to work.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from coordinator.rounds import Pace  # noqa: E402  torch is optional, so it is looked for first
from coordinator.service import Coordinator  # noqa: E402
from coordinator.strategies import Settings, strategy  # noqa: E402
from device_runtime import accelerator  # noqa: E402
from device_runtime.config import DeviceConfig  # noqa: E402
from device_runtime.config import Settings as DeviceSettings  # noqa: E402
from device_runtime.features import ResidentFeatures  # noqa: E402
from device_runtime.progress import Progress  # noqa: E402
from device_runtime.runtime import Runtime  # noqa: E402
from device_runtime.stopwatch import BlockTime  # noqa: E402
from device_runtime.trainer import Trained, train  # noqa: E402
from models.local import Local  # noqa: E402
from models.spec import SHARED, Mode  # noqa: E402
from protocol.config import BrokerConfig  # noqa: E402
from protocol.memory import MemoryBroker, MemoryTransport  # noqa: E402
from protocol.messages import Report, Status, Telemetry, decode  # noqa: E402
from protocol.topics import Topics  # noqa: E402
from protocol.transport import Event, Received  # noqa: E402
from tests.test_device_trainer import MODELS, network, windows  # noqa: E402
from tests.worlds import FixedWindows, spec  # noqa: E402
from tests.worlds import windows as labelled  # noqa: E402

HERE = torch.cuda.is_available()
GPU = pytest.mark.skipif(not HERE, reason="this machine has no GPU that torch can use")
WHERE = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=GPU)])
STEPS = {"chest": 9, "wrist": 4, SHARED: 9}  # the encoder of wrist comes from the cache for five steps


@pytest.fixture(autouse=True)
def exact():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    accelerator.exact()
    yield
    torch.set_num_threads(before)


def run(where: str, model: str, local: Local, **more) -> Trained:
    net = network(MODELS[model])
    x, y = windows(("chest", "wrist"))
    x = {m: values.to(where) for m, values in x.items()}
    return train(net, x, y.to(where), STEPS, local, device="d1", round=5, **more)


def close(one: Trained, other: Trained, *, double: bool) -> None:
    assert one.steps == other.steps
    assert one.computed == other.computed
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if double else {"rtol": 0, "atol": 1e-4}
    for block, delta in other.deltas.items():
        assert one.deltas[block].dtype == (np.float64 if double else np.float32)
        np.testing.assert_allclose(one.deltas[block], delta, err_msg=block, **tolerance)
    assert one.loss == pytest.approx(other.loss, abs=1e-10 if double else 1e-4)


@WHERE
@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "local",
    [
        Local(batch=7),
        Local(batch=7, dropout=0.4, clip=0.5),
        Local(batch=7, prox=0.1, zero_fill=True),
        Local(batch=7, cache=False),
    ],
    ids=["plain", "dropout and clip", "prox and zeros", "no cache"],
)
def test_a_round_is_the_same_as_on_the_cpu(where: str, model: str, local: Local, double: bool) -> None:
    local = replace(local, double=double)
    close(run(where, model, local), run("cpu", model, local), double=double)


@WHERE
def test_features_that_stay_from_round_to_round_are_the_same_and_lie_where_training_is(where: str) -> None:
    resident, local = ResidentFeatures(), Local(batch=7, double=True)
    first = run(where, "lora", local, resident=resident)
    again = run(where, "lora", local, resident=resident)
    close(replace(again, computed=first.computed), first, double=True)
    assert sum(again.computed.values()) == 0
    elsewhere = run("cpu", "lora", local, resident=resident)
    close(replace(elsewhere, computed=first.computed), first, double=True)


@WHERE
def test_stopped_training_goes_on_where_it_was_on_either_processor(where: str, tmp_path: Path) -> None:
    local, whole = Local(batch=7, double=True), run("cpu", "full", Local(batch=7, double=True))
    for then in {where, "cpu"}:
        asked = iter([False] * 4 + [True])
        progress = Progress(tmp_path)
        assert progress.begin("k") is None
        part = run(where, "full", local, stop=lambda asked=asked: next(asked), progress=progress)
        assert part.partial and part.steps["chest"] == 4
        rest = run(then, "full", local, resume=progress.begin("k"))
        progress.clear()
        close(replace(rest, computed=whole.computed), whole, double=True)


@WHERE
def test_every_block_that_was_trained_has_seconds_and_together_they_are_the_rounds(where: str) -> None:
    done = run(where, "full", Local(batch=7))
    assert set(done.seconds) == set(STEPS)
    assert all(t.backward > 0 for t in done.times.values())
    assert sum(done.seconds.values()) == pytest.approx(done.wall, rel=1e-6)
    assert done.busy > 0


def test_the_faster_processor_is_taken_and_the_first_of_equals() -> None:
    slow, fast = {"a": BlockTime(2.0, 2.0, 10, 10)}, {"a": BlockTime(1.0, 1.0, 10, 10)}
    assert accelerator.faster({"cpu": slow, "cuda": fast}) == "cuda"
    assert accelerator.faster({"cpu": fast, "cuda": slow}) == "cpu"
    assert accelerator.faster({"cpu": fast, "cuda": fast}) == "cpu"


@pytest.mark.skipif(HERE, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_declined_with_what_to_do(tmp_path: Path) -> None:
    assert accelerator.candidates("auto") == ("cpu",)
    assert 'set accelerator = "auto"' in accelerator.problem("cuda")
    told = Round(tmp_path, "cuda").go(rounds=0, until="declined")
    assert 'set accelerator = "auto"' in told


class Round:
    """Coordinator and one device in memory; what the device says is read along."""

    def __init__(self, folder: Path, wish: str) -> None:
        self.folder, self.broker, self.of = folder, MemoryBroker(), spec(2, Mode.LORA)
        x, y = labelled(self.of, 40)
        config = DeviceConfig(id="a", state=folder / "state", telemetry=0.2, power=(), accelerator=wish)  # type: ignore[arg-type]
        settings = DeviceSettings(fleet="test", broker=BrokerConfig(transport="memory"), device=config)
        self.runtime = Runtime(settings, MemoryTransport(self.broker, "a"), FixedWindows(x, y))
        self.births: list[Status] = []
        self.telemetry: list[Telemetry] = []
        self.declined = ""
        self.run: Coordinator | None = None

    def go(self, rounds: int, until: str = "") -> str:
        topics, stop = Topics("test"), threading.Event()
        local = Local(batch=8, double=True, wire="<f8")
        self.run = Coordinator(
            fleet="test",
            spec=self.of,
            strategy=strategy("relief")(self.of, Settings(epochs=1, local=local)),
            pace=Pace(expect=1, gather=60, margin=60, rounds=rounds),
            folder=self.folder / "run",
            control=MemoryTransport(self.broker, "coordinator-control"),
            bulk=MemoryTransport(self.broker, "coordinator-bulk"),
        )

        def listen(event: Event) -> None:
            if not isinstance(event, Received) or not event.payload:
                return
            if event.topic.endswith("/status"):
                self.births.append(decode(Status, event.payload))
            elif event.topic.endswith("/telemetry"):
                self.telemetry.append(decode(Telemetry, event.payload))
            elif event.topic.endswith("/report"):
                self.declined = decode(Report, event.payload).reason
                if until == "declined":
                    stop.set()
                    assert self.run is not None
                    self.run.wake()

        listener = MemoryTransport(self.broker, "listener")
        listener.open(listen)
        listener.subscribe(*(topics.device("+", leaf) for leaf in ("status", "telemetry", "report")))
        device = threading.Thread(target=self.runtime.run)
        device.start()
        try:
            self.run.run(stop)
            ends = time.monotonic() + 10.0
            while not self.telemetry and time.monotonic() < ends:  # three rounds may be faster than the first of it
                time.sleep(0.05)
        finally:
            self.runtime.stop()
            device.join(30)
            listener.close()
        return self.declined


@WHERE
def test_rounds_over_the_protocol_are_trained_where_it_was_wished_and_births_say_so(where: str, tmp_path: Path) -> None:
    world = Round(tmp_path, where)
    assert world.go(rounds=3) == ""
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["updates"] for line in lines if line["kind"] == "round"] == [1, 1, 1]
    named = [b.accelerator for b in world.births if b.accelerator]
    assert named and all(name.split(":")[0] == where for name in named)
    assert world.telemetry[-1].values["accelerator"] == named[-1]
    other = Round(tmp_path / "cpu", "cpu")
    other.go(rounds=3)
    assert world.run is not None and other.run is not None
    for block, vector in other.run.blocks.items():
        np.testing.assert_allclose(world.run.blocks[block], vector, rtol=0, atol=1e-9, err_msg=block)


@GPU
def test_left_to_itself_a_device_takes_one_of_both_and_says_which(tmp_path: Path) -> None:
    world = Round(tmp_path, "auto")
    assert world.go(rounds=1) == ""
    assert world.runtime.worker is not None
    assert world.runtime.worker.accelerator.split(":")[0] in ("cpu", "cuda")
