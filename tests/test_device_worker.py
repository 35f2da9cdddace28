"""The thread that computes: what it makes of rounds and orders, and that nothing it is asked for ends it."""

from __future__ import annotations

import hashlib
import math
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from device_runtime import calibration  # noqa: E402  torch is looked for first
from device_runtime.downloads import Held  # noqa: E402
from device_runtime.events import OrderDone, StartTraining, TrainingDone, TrainingFailed  # noqa: E402
from device_runtime.joules import ConfiguredWatts  # noqa: E402
from device_runtime.progress import Progress  # noqa: E402
from device_runtime.sensing import Labelled  # noqa: E402
from device_runtime.worker import Worker  # noqa: E402
from models.local import Local  # noqa: E402
from models.partition import initial  # noqa: E402
from models.spec import InputSpec, Mode, ModelSpec  # noqa: E402
from protocol.messages import Assignment, Manifest, Order, Report, Update  # noqa: E402
from tests.parties import eventually  # noqa: E402

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

    def __init__(self, folder: Path, spec: ModelSpec = SPEC, watts: float = 0.0, every: float = 5.0) -> None:
        self.said: queue.SimpleQueue[object] = queue.SimpleQueue()
        joules = ConfiguredWatts(watts, time.monotonic)
        self.worker = Worker("d", "b", self.said.put, joules, Progress(folder, every=every), wish="cpu")
        self.worker.use_model(spec, ("hand",))

    def next(self, *kinds: type) -> object:
        """The next of these events; others are passed over."""
        while not isinstance(event := self.said.get(timeout=30), kinds):
            pass
        return event

    def begin(self, number: int, blocks: dict[str, Held], sensed: Labelled, steps: int = 10, joules: float = 0) -> None:
        """A round on these blocks and windows."""
        a = Assignment(
            id=f"1.{number}", round=number, epoch=1, steps={"hand": steps, "shared": steps}, joules=joules,
            versions={"hand": 1, "shared": 1}, training=Local(batch=8, lr=0.01).to_dict(), deadline=60.0,
        )  # fmt: skip
        self.worker.train(StartTraining(a, ("hand",), blocks, math.inf), sensed)

    def round(self, *about: object, **more: object) -> Update:
        """What a round brings."""
        self.begin(*about, **more)  # type: ignore[arg-type]
        event = self.next(TrainingDone, TrainingFailed)
        assert isinstance(event, TrainingDone), event
        return event.update

    def obey(self, kind: str, blocks: dict[str, Held], sensed: Labelled) -> Report:
        """What an order is answered."""
        self.worker.obey(Order(id="o", kind=kind), blocks, sensed)
        event = self.next(OrderDone)
        assert isinstance(event, OrderDone)
        return event.report


@pytest.fixture
def hired(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    made: list[Trainer] = []

    def make(**more: object) -> Trainer:
        made.append(Trainer(tmp_path / str(len(made)), **more))
        return made[-1]

    yield make
    for one in made:
        assert one.worker.close(20)


# -- features that outlive a round ---------------------------------------------------------------------------


def test_a_renewed_normalisation_trains_on_features_that_are_made_anew(hired: Callable[..., Trainer]) -> None:
    old, new = hired(spec=LORA), hired(spec=LORA)
    old.round(1, held(LORA, center=5.0, width=2.0), windows())
    second, first = (one.round(2, held(LORA, center=9.0, width=4.0), windows()) for one in (old, new))
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    for block, work in first.blocks.items():
        np.testing.assert_array_equal(second.blocks[block].delta.array(), work.delta.array())


# -- a round in two lives ------------------------------------------------------------------------------------


def test_a_resumed_round_has_the_joules_of_both_lives_and_one_allowance_for_both(tmp_path: Path) -> None:
    about = (1, held(SPEC), windows())
    endless = {"steps": 50_000, "joules": 20.0}  # two seconds in all
    first = Trainer(tmp_path, watts=10.0, every=1.0)
    first.begin(*about, **endless)
    assert eventually(lambda: any(tmp_path.iterdir())), "after a second it is kept"
    assert first.worker.close(20)
    second = Trainer(tmp_path, watts=10.0)
    update = second.round(*about, **endless)
    assert second.worker.close(20)
    assert update.partial
    assert update.joules == pytest.approx(10.0 * update.seconds, rel=0.1)
    assert 15.0 < update.joules < 25.0


# -- whatever is asked for -----------------------------------------------------------------------------------


def test_a_device_measures_itself_by_order_while_no_sensor_delivers(hired: Callable[..., Trainer]) -> None:
    one = hired()
    report = one.obey("profile", {}, Labelled({}, np.empty(0, np.int64), np.empty(0, np.int64)))
    assert report.ok, report.reason
    assert set(report.values["seconds_per_window"]) == {"hand", "shared"}


def test_a_label_that_the_model_does_not_know_costs_its_own_window_only(hired: Callable[..., Trainer]) -> None:
    one, good = hired(), windows(39)
    slip = Labelled(
        {"hand": np.concatenate([windows().x["hand"][:1], good.x["hand"]])}, np.append(3, good.y), np.arange(-1, 39)
    )
    report = one.obey("evaluate", held(SPEC), slip)
    assert report.ok, report.reason
    assert np.sum(report.values["confusion"]) == report.values["windows"] == 39
    with_it, without = one.round(1, held(SPEC), slip), one.round(1, held(SPEC), good)
    assert (with_it.samples, with_it.loss) == (39, without.loss)


def test_an_order_that_fails_is_answered_and_the_next_one_is_carried_out(
    hired: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: object) -> None:
        raise MemoryError("nothing left")

    one = hired()
    with monkeypatch.context() as patched:
        patched.setattr("device_runtime.worker.evaluated", out_of_memory)
        assert one.obey("evaluate", held(SPEC), windows()).reason == "MemoryError: nothing left"
    assert one.obey("evaluate", held(SPEC), windows()).ok


def test_a_model_that_cannot_be_used_is_declined_with_the_reason_until_another_comes(
    hired: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **more: object) -> None:
        raise MemoryError("nothing left")

    with monkeypatch.context() as patched:
        patched.setattr(calibration, "measure", fails)
        one = hired()
        with pytest.raises(AssertionError, match="cannot be trained here: MemoryError: nothing left"):
            one.round(1, held(SPEC), windows())
    one.worker.use_model(SPEC, ("hand",))
    assert one.round(2, held(SPEC), windows()).samples == 40
