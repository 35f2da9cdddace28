"""Inference without torch gives torch's answers, for every subset, while block versions come and go."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from device_runtime.inference import Engine, Refused
from models import kit as kits
from models.export import export, loaded
from models.kit import Kit, KitError, Scale
from models.partition import Vector, initial
from models.spec import SHARED, BPolicy, InputSpec, Mode, ModelSpec

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra: infer)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")

INPUTS = (InputSpec("hand", 3, 86), InputSpec("chest", 3, 86), InputSpec("heart", 1, 40))
SPECS = {
    "lora": ModelSpec(INPUTS, classes=6, mode=Mode.LORA),
    "lora with encoder adapters": ModelSpec(
        INPUTS, classes=6, mode=Mode.LORA, encoder_rank=2, b_policy=BPolicy.FROZEN, widths=(8, 12)
    ),
    "full": ModelSpec(INPUTS, classes=6, mode=Mode.FULL),
    "no encoders": ModelSpec(INPUTS, classes=6, mode=Mode.FULL, widths=()),
}
Kits = Callable[[str], Path]


@pytest.fixture(scope="module")
def kit_of(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    """The kit of a spec by its name above, with tensors far from their start; exported once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("kits") / "kit"
            blocks, base = initial(SPECS[name])
            export(SPECS[name], moved(blocks, 1), moved(base, 2), folder, version=3)
            made[name] = folder
        return made[name]

    return make


def moved(vectors: dict[str, Vector], seed: int) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {b: (v + 0.2 * rng.standard_normal(v.shape)).astype(np.float32) for b, v in vectors.items()}


def windows(spec: ModelSpec, present: tuple[str, ...], count: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {m: (count, spec.input(m).channels, spec.input(m).samples) for m in present}
    return {m: rng.standard_normal(shape).astype(np.float32) for m, shape in shapes.items()}


def by_torch(kit: Kit, blocks: dict[str, Vector], x: dict[str, np.ndarray]) -> np.ndarray:
    network = loaded(kit.spec, {**kit.blocks, **blocks}, kit.base)
    with torch.inference_mode():
        answer: np.ndarray = torch.softmax(network({m: torch.from_numpy(v) for m, v in x.items()}), -1).numpy()
    return answer


@pytest.mark.parametrize("name", list(SPECS))
def test_every_subset_gives_torchs_answer_before_and_after_a_swap(kit_of: Kits, name: str) -> None:
    kit = kits.load(kit_of(name))
    engine = Engine(kit)
    fresh = moved(kit.blocks, 5)
    for blocks, version in ((kit.blocks, 3), (fresh, 4)):
        if version == 4:
            engine.swap(fresh, dict.fromkeys(fresh, 4), wait=True)
        for size in range(1, len(INPUTS) + 1):
            for present in itertools.combinations(kit.spec.names, size):
                x = windows(kit.spec, present)
                scores = engine.predict(x)
                expected = by_torch(kit, blocks, x)
                assert np.abs(scores.probabilities - expected).max() <= 1e-5
                assert (scores.classes == expected.argmax(1)).all() and set(scores.versions.values()) == {version}
                assert scores.confidence == pytest.approx(expected.max(1), abs=1e-5)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_an_absent_encoder_is_not_in_the_graph(kit_of: Kits, name: str) -> None:
    import onnx

    from device_runtime.onnx_parts import joined

    kit = kits.load(kit_of(name))
    tensors = Engine(kit)._views({**kit.blocks}) | Engine(kit)._views(kit.base, frozen=True)
    nodes = {}
    for present in (("hand",), ("hand", "heart"), kit.spec.names):
        model = onnx.load_from_string(joined(kit, present, tensors))
        onnx.checker.check_model(model, full_check=True)
        nodes[present] = [n.op_type for n in model.graph.node].count("Conv")
        text = str(model.graph)
        assert all((absent in text) == (absent in present) for absent in kit.spec.names)
    assert list(nodes.values()) == [2, 4, 6]


def test_the_whole_model_is_a_valid_onnx_file_for_other_tools(kit_of: Kits) -> None:
    import onnx
    import onnxruntime

    kit = kits.load(kit_of("lora"))
    path = kit_of("lora") / "model.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    x = windows(kit.spec, kit.spec.names)
    scores = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["scores"], x)[0]
    assert np.abs(scores - by_torch(kit, {}, x)).max() <= 1e-5


def test_a_device_needs_only_the_blocks_of_what_it_owns(kit_of: Kits) -> None:
    kit = kits.load(kit_of("lora"))
    engine = Engine(kit, ["chest"])
    fresh = {b: v for b, v in moved(kit.blocks, 6).items() if b in ("chest", SHARED)}
    engine.swap(fresh, {"chest": 9, SHARED: 8})
    x = windows(kit.spec, ("chest",))
    assert np.abs(engine.predict(x).probabilities - by_torch(kit, fresh, x)).max() <= 1e-5
    assert engine.versions == {"chest": 9, SHARED: 8}
    with pytest.raises(KeyError, match="takes"):
        engine.predict(windows(kit.spec, ("chest", "hand")))


@pytest.mark.parametrize("name", ["lora", "full"])
def test_partial_mismatched_or_broken_blocks_are_refused_and_change_nothing(kit_of: Kits, name: str) -> None:
    kit = kits.load(kit_of(name))
    engine = Engine(kit, ["hand", "chest"])
    x = windows(kit.spec, ("hand",))
    before = engine.predict(x)
    whole = {b: v for b, v in moved(kit.blocks, 8).items() if b != "heart"}
    versions = dict.fromkeys(whole, 4)
    longer = {**whole, "hand": np.zeros(len(whole["hand"]) + 1, np.float32)}
    broken = {**whole, SHARED: np.full_like(whole[SHARED], np.nan)}
    for blocks, reason in (
        ({b: whole[b] for b in ("hand", SHARED)}, "blocks chest are missing"),
        ({b: whole[b] for b in ("hand", "chest")}, "blocks shared are missing"),
        ({**whole, "ear": whole["hand"]}, "blocks ear do not belong"),
        (longer, "block hand: expected a vector of"),
        (broken, "not finite"),
    ):
        with pytest.raises(Refused, match=reason):
            engine.swap(blocks, versions, wait=True)
        after = engine.predict(x)
        assert (after.probabilities == before.probabilities).all() and after.versions == before.versions
    with pytest.raises(Refused, match="missing"):
        engine.swap(whole, {"hand": 4, SHARED: 4})
    assert not engine.roll_back()


@pytest.mark.parametrize("name", ["lora", "full"])
def test_rolling_back_is_instant_and_exact(kit_of: Kits, name: str) -> None:
    kit = kits.load(kit_of(name))
    engine = Engine(kit)
    x = windows(kit.spec, ("hand", "heart"))
    first = engine.predict(x)
    fresh = moved(kit.blocks, 9)
    engine.swap(fresh, dict.fromkeys(fresh, 4), wait=True)
    second = engine.predict(x)
    began = time.perf_counter()
    assert engine.roll_back()
    assert time.perf_counter() - began < 0.001
    assert (engine.predict(x).probabilities == first.probabilities).all() and engine.versions == first.versions
    assert engine.roll_back()
    assert (engine.predict(x).probabilities == second.probabilities).all()


@pytest.mark.parametrize("name", ["lora", "full"])
def test_predictions_go_on_while_versions_change_and_are_never_a_mixture(kit_of: Kits, name: str) -> None:
    kit = kits.load(kit_of(name))
    engine = Engine(kit)
    x = windows(kit.spec, kit.spec.names, count=1)
    sets = [kit.blocks, moved(kit.blocks, 10), moved(kit.blocks, 11)]
    answers = {3 + k: by_torch(kit, blocks, x) for k, blocks in enumerate(sets)}
    engine.predict(x)
    stop, wrong, seen = threading.Event(), [], set()

    def predict() -> None:
        while not stop.is_set():
            scores = engine.predict(x)
            version = set(scores.versions.values())
            seen.update(version)
            if len(version) != 1 or np.abs(scores.probabilities - answers[min(version)]).max() > 1e-5:
                wrong.append(scores)

    thread = threading.Thread(target=predict)
    thread.start()
    for k in range(20):
        chosen = k % 3
        engine.swap(sets[chosen], dict.fromkeys(kit.blocks, 3 + chosen))
        time.sleep(0.01)
    engine.settle()
    stop.set()
    thread.join()
    assert not wrong and len(seen) >= 2


def test_raw_windows_are_normalised_as_the_kit_says(kit_of: Kits) -> None:
    kit = kits.load(kit_of("full"))
    engine = Engine(kit)
    x = windows(kit.spec, ("heart", "hand"))
    raw = {"heart": x["heart"] * 20 + 80, "hand": x["hand"]}
    scale = {"heart": Scale((80.0,), (20.0,))}
    assert np.abs(engine.predict(raw, scale).probabilities - engine.predict(x).probabilities).max() <= 1e-5


def test_windows_of_another_shape_are_one_clear_error(kit_of: Kits) -> None:
    engine = Engine(kits.load(kit_of("full")))
    with pytest.raises(ValueError, match=r"windows of hand have shape \(5, 3, 85\), expected \(5, 3, 86\)"):
        engine.predict({"hand": np.zeros((5, 3, 85), np.float32)})
    with pytest.raises(KeyError):
        engine.predict({})


def test_a_damaged_kit_is_refused_by_file_name(kit_of: Kits, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "kit"
    shutil.copytree(kit_of("lora"), copy)
    (copy / "hand.part").write_bytes(b"\0" + (copy / "hand.part").read_bytes())
    with pytest.raises(KitError, match=r"hand\.part does not have the sha256"):
        kits.load(copy)
    (copy / "hand.part").unlink()
    with pytest.raises(KitError, match=r"hand\.part is missing; export it again"):
        kits.load(copy)


def test_inference_runs_in_a_process_that_has_neither_torch_nor_onnx(kit_of: Kits) -> None:
    program = f"""
import sys
for name in ("torch", "onnx", "onnxscript"):
    sys.modules[name] = None
import numpy as np
from pathlib import Path
from models.kit import load
from device_runtime.inference import Engine
kit = load(Path({str(kit_of("lora"))!r}))
engine = Engine(kit, ["hand"])
scores = engine.predict({{"hand": np.zeros((1, 3, 86), np.float32)}})
print(scores.classes[0], sorted(scores.versions))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1)[1].strip() == "['hand', 'shared']"


def test_providers_that_are_not_there_are_passed_over_and_unknown_ones_named(kit_of: Kits) -> None:
    kit = kits.load(kit_of("lora"))
    assert Engine(kit, providers=("cuda", "cpu")).providers[-1] == "CPUExecutionProvider"
    with pytest.raises(ValueError, match="provider 'npu'"):
        Engine(kit, providers=("npu",))
