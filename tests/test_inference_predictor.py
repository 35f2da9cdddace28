"""A device predicts by the newest whole set of blocks, and says why where it cannot."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from device_runtime.downloads import Held
from device_runtime.predictor import Predictor
from device_runtime.sensing import Labelled
from device_runtime.shelf import Shelf
from models.export import export, loaded
from models.partition import Vector, initial
from models.spec import InputSpec, Mode, ModelSpec
from protocol.messages import Manifest, Prediction
from tests.emulated_board import wait_for

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra: infer)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")

SPEC = ModelSpec((InputSpec("hand", 2, 40), InputSpec("chest", 2, 40)), classes=4, mode=Mode.LORA, widths=(4,))
WINDOW = np.random.default_rng(0).standard_normal((1, 2, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kits") / "kit"
    blocks, base = initial(SPEC)
    export(SPEC, blocks, base, folder, versions=dict.fromkeys(blocks, 1))
    return folder


def held(vectors: dict[str, Vector], version: int, center: float = 0.0) -> dict[str, Held]:
    made = {}
    for block, vector in vectors.items():
        data = vector.astype("<f4").tobytes()
        own = {"center": [center] * 2, "width": [2.0] * 2} if block in SPEC.names else {}
        digest = hashlib.sha256(data).digest()
        manifest = Manifest(block=block, version=version, epoch=1, chunks=1, size=len(data), digest=digest, **own)
        made[block] = Held(manifest, data)
    return made


class Device:
    """A predictor whose sensors show one window after the other."""

    def __init__(self, kit: Path, owned: tuple[str, ...] = ("hand", "chest")) -> None:
        self.windows = {"hand": WINDOW}
        self.said: list[Prediction] = []
        self._end, self.step = 0.0, 1.0
        self.predictor = Predictor(kit, self._latest, self.said.append, owned=owned, every=0.02)
        self.predictor.open()

    def _latest(self) -> tuple[float, float, dict[str, np.ndarray]]:
        self._end += self.step
        return self._end - 2.0, self._end, self.windows


@pytest.fixture
def device(kit: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []
    before = threading.active_count()

    def make(folder: Path = kit, **settings: tuple[str, ...]) -> Device:
        made.append(Device(folder, **settings))
        return made[-1]

    yield make
    for one in made:
        one.predictor.close()
    assert threading.active_count() == before


def test_predictions_follow_the_blocks_that_arrive_and_their_normalisation(device: Callable[..., Device]) -> None:
    one = device()
    wait_for(lambda: len(one.said) >= 2, "predictions by the kit's own blocks")
    assert one.said[0].versions == {"hand": 1, "chest": 1, "shared": 1} and one.said[0].end == 1.0
    blocks, base = initial(SPEC)
    rng = np.random.default_rng(1)
    fresh = {b: (v + 0.3 * rng.standard_normal(v.shape)).astype(np.float32) for b, v in blocks.items()}
    one.predictor.offer(SPEC, held(fresh, 7, center=0.5) | {f"{m}.base": h for m, h in held(base, 1).items()})
    wait_for(lambda: one.said[-1].versions == {"hand": 7, "chest": 7, "shared": 7}, "the new versions")
    with torch.inference_mode():
        x = {"hand": torch.from_numpy((WINDOW - 0.5) / 2.0)}
        expected = torch.softmax(loaded(SPEC, fresh, base)(x), -1)[0].numpy()
    assert one.said[-1].label == expected.argmax()
    assert one.said[-1].confidence == pytest.approx(expected.max(), abs=1e-5)
    values = one.predictor.values()
    assert (
        values["inference_versions"]["hand"] == 7 and values["inference_ms"] > 0 and "inference_problem" not in values
    )


def test_the_same_blocks_with_another_normalisation_are_taken(device: Callable[..., Device]) -> None:
    one = device()
    blocks, base = initial(SPEC)
    for version, center in ((2, 0.0), (3, 3.0)):
        one.predictor.offer(SPEC, held(blocks, version, center))
        wait_for(lambda v=version: one.said and one.said[-1].versions["hand"] == v, "the version")
        with torch.inference_mode():
            x = {"hand": torch.from_numpy((WINDOW - np.float32(center)) / 2.0)}
            expected = torch.softmax(loaded(SPEC, blocks, base)(x), -1)[0].numpy()
        assert one.said[-1].confidence == pytest.approx(expected.max(), abs=1e-5)


def test_a_partial_set_or_another_model_or_base_is_told_and_the_old_blocks_go_on(device: Callable[..., Device]) -> None:
    one = device()
    blocks, base = initial(SPEC)
    wait_for(lambda: bool(one.said), "predictions")
    one.predictor.offer(SPEC, {b: h for b, h in held(blocks, 5).items() if b != "shared"})
    wait_for(lambda: "blocks shared are missing" in one.predictor.problem, "the refusal")
    other = ModelSpec(SPEC.inputs, classes=5, mode=Mode.LORA, widths=(4,))
    one.predictor.offer(other, held(blocks, 6))
    wait_for(lambda: "the fleet's model is not that of the kit" in one.predictor.problem, "the refusal")
    moved = {f"{m}.base": h for m, h in held({m: v + 1 for m, v in base.items()}, 2).items()}
    one.predictor.offer(SPEC, held(blocks, 8) | moved)
    wait_for(lambda: "the fleet's base is not that of the kit" in one.predictor.problem, "the refusal")
    count = len(one.said)
    wait_for(lambda: len(one.said) > count, "predictions that go on")
    assert one.said[-1].versions == {"hand": 1, "chest": 1, "shared": 1}


def test_without_a_kit_there_is_a_problem_and_no_prediction(device: Callable[..., Device], tmp_path: Path) -> None:
    one = device(tmp_path / "none")
    wait_for(lambda: bool(one.predictor.problem), "the problem")
    assert "kit.json is missing" in one.predictor.problem and not one.said


def test_nothing_new_to_see_is_not_predicted_again(device: Callable[..., Device]) -> None:
    one = device()
    wait_for(lambda: bool(one.said), "a prediction")
    one._latest = None  # type: ignore[assignment, method-assign]
    one.windows = {}
    count = len(one.said)
    threading.Event().wait(0.2)
    assert len(one.said) <= count + 1


def test_a_clock_that_is_set_back_stops_no_predictions_and_the_same_window_is_predicted_once(
    device: Callable[..., Device],
) -> None:
    one = device()
    wait_for(lambda: bool(one.said), "a prediction")
    one._end = -600.0
    wait_for(lambda: one.said[-1].end < 0, "predictions by the clock as it is now")
    one.step = 0.0
    threading.Event().wait(0.1)
    count = len(one.said)
    threading.Event().wait(0.2)
    assert len(one.said) == count


def adopt(predictor: Predictor, version: int, center: float = 0.0) -> str:
    """Adopt a registered version, to its end: why not, or nothing."""
    rng = np.random.default_rng(version)
    blocks = {b: rng.standard_normal(v.shape).astype(np.float32) for b, v in initial(SPEC)[0].items()}
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    predictor.release(version, SPEC, held(blocks, version, center), said.put)
    return said.get(timeout=10.0)


def test_an_adopted_version_stays_while_newer_blocks_come_and_over_restarts(kit: Path, tmp_path: Path) -> None:
    told: list[int] = []

    def life() -> Predictor:
        one = Predictor(kit, lambda: None, lambda p: None, owned=("hand", "chest"), every=0.01,
                        shelf=Shelf(tmp_path), changed=told.append)  # fmt: skip
        one.open()
        return one

    one = life()
    newest = held(initial(SPEC)[0], 5)
    one.offer(SPEC, newest)
    wait_for(lambda: one.versions().get("hand") == 5, "the newest blocks")
    assert adopt(one, 11, center=0.5) == ""
    assert adopt(one, 12) == ""
    one.offer(SPEC, held(initial(SPEC)[0], 6))
    assert adopt(one, 13) == ""
    assert set(one.versions().values()) == {13}
    one.close()

    two = life()
    wait_for(lambda: set(two.versions().values()) == {13}, "what was adopted before")
    assert two.values()["inference_release"] == 13
    assert two.roll_back()
    assert set(two.versions().values()) == {12}
    two.offer(SPEC, newest)
    assert two.roll_back(), "11 is too long ago: the newest blocks come next"
    wait_for(lambda: set(two.versions().values()) == {5}, "the newest blocks")
    two.close()
    assert told == [11, 12, 13, 13, 12, 0]
    assert Shelf(tmp_path).in_use() == []


def test_a_version_of_another_model_or_not_whole_changes_nothing(kit: Path, tmp_path: Path) -> None:
    one = Predictor(kit, lambda: None, lambda p: None, owned=("hand", "chest"), every=0.01, shelf=Shelf(tmp_path))
    one.open()
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    partial = {b: h for b, h in held(initial(SPEC)[0], 9).items() if b != "shared"}
    one.release(9, SPEC, partial, said.put)
    assert "blocks shared are missing" in said.get(timeout=10.0)
    one.release(9, ModelSpec(SPEC.inputs, classes=5, mode=Mode.LORA, widths=(4,)), partial, said.put)
    assert "the fleet's model is not that of the kit" in said.get(timeout=10.0)
    assert set(one.versions().values()) == {1}
    assert Shelf(tmp_path).in_use() == []
    one.close()
    broken = Predictor(tmp_path / "none", lambda: None, lambda p: None, owned=("hand",), every=0.01)
    broken.open()
    broken.release(9, SPEC, partial, said.put)
    assert "kit.json is missing" in said.get(timeout=10.0), "whoever asks is told, also without a kit"
    broken.close()


def test_what_predicts_judges_itself_by_labelled_windows(kit: Path) -> None:
    one = Predictor(kit, lambda: None, lambda p: None, owned=("hand", "chest"), every=0.01)
    one.open()
    said: queue.SimpleQueue[tuple[dict[str, object], str]] = queue.SimpleQueue()
    rng = np.random.default_rng(3)
    x = {m: rng.standard_normal((300, 2, 40)).astype(np.float32) for m in ("hand", "chest")}
    y = rng.integers(0, 4, 300)
    one.judge(Labelled(x, y, np.arange(300)), lambda values, why: said.put((values, why)))
    values, why = said.get(timeout=20.0)
    assert why == ""
    blocks, base = initial(SPEC)
    with torch.inference_mode():
        expected = loaded(SPEC, blocks, base)({m: torch.from_numpy(v) for m, v in x.items()}).argmax(1).numpy()
    assert values["accuracy"] == pytest.approx(float((expected == y).mean()))
    assert np.sum(values["confusion"], axis=1).tolist() == np.bincount(y, minlength=4).tolist()  # type: ignore[arg-type]
    empty = Labelled({m: v[:0] for m, v in x.items()}, y[:0], np.arange(0))
    one.judge(empty, lambda values, why: said.put((values, why)))
    assert said.get(timeout=10.0)[1] == "there are no labelled windows to judge by"
    slip = np.where(np.arange(300) == 5, 4, y)  # a label that the model does not know
    one.judge(Labelled(x, slip, np.arange(300)), lambda values, why: said.put((values, why)))
    values, why = said.get(timeout=20.0)
    assert (values["windows"], np.sum(values["confusion"]), why) == (299, 299, "")  # type: ignore[arg-type]
    one.close()
