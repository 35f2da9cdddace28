"""A checkpoint is whole or not there; a damaged one is passed over for the newest older good one, and this is said."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from coordinator import checkpoint
from coordinator.checkpoint import CheckpointError
from models.partition import Vector, initial, partition
from models.spec import BPolicy, InputSpec, Mode, ModelSpec


def spec(**changes: object) -> ModelSpec:
    inputs = (InputSpec("hand", 3, 40), InputSpec("chest", 6, 40))
    return ModelSpec(inputs, 4, widths=(4, 6), fusion=8, **changes)  # type: ignore[arg-type]


def same(a: dict[str, Vector], b: dict[str, Vector]) -> bool:
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "model",
    [spec(), spec(mode=Mode.LORA), spec(mode=Mode.LORA, b_policy=BPolicy.FROZEN, encoder_rank=2)],
    ids=["full", "lora", "lora-frozen-b"],
)
def test_blocks_base_spec_and_meta_come_back_bit_for_bit(tmp_path: Path, model: ModelSpec, dtype: type) -> None:
    blocks, base = initial(model)
    blocks = {name: vector.astype(dtype) for name, vector in blocks.items()}
    versions = {name: n for n, name in enumerate(blocks)}
    path = checkpoint.save(tmp_path, 7, blocks, model, {"round": 9, "note": "ü"}, base=base, versions=versions)
    found = checkpoint.load(path)
    assert found.version == 7 and found.spec == model and found.versions == versions
    assert found.meta == {"round": 9, "note": "ü"} and found.passed_over == ()
    assert same(found.blocks, blocks)
    assert same({k: v for k, v in found.base.items() if v.size}, {k: v for k, v in base.items() if v.size})


def test_other_programs_find_tensors_under_their_parameter_names(tmp_path: Path) -> None:
    model = spec(mode=Mode.LORA)
    blocks, base = initial(model)
    path = checkpoint.save(tmp_path, 1, blocks, model, {}, base=base)
    adapter = load_file(path / "adapter_model.safetensors")
    for block, layout in partition(model).trainable.items():
        for t in layout:
            assert adapter[t.name].shape == t.shape
            assert np.array_equal(adapter[t.name], partition(model).views(block, blocks[block])[t.name])
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", model.rank, model.alpha)
    assert set(load_file(path / "base.safetensors")) == {
        t.name for layout in partition(model).frozen.values() for t in layout
    }


def test_a_missing_block_and_a_missing_base_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    model = spec(mode=Mode.LORA)
    blocks, _ = initial(model)
    with pytest.raises(ValueError, match="base of block hand is missing"):
        checkpoint.save(tmp_path, 1, blocks, model, {})
    with pytest.raises(ValueError, match="block hand"):
        checkpoint.save(tmp_path, 1, {**blocks, "hand": blocks["hand"][1:]}, model, {}, base={})
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    blocks, _ = initial(spec())
    for version in range(1, 8):
        checkpoint.save(tmp_path, version, blocks, spec(), {}, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{v:08d}" for v in (5, 6, 7)]
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.version == 7


def test_the_same_version_can_be_written_again(tmp_path: Path) -> None:
    blocks, _ = initial(spec())
    checkpoint.save(tmp_path, 1, blocks, spec(), {"try": 1})
    path = checkpoint.save(tmp_path, 1, blocks, spec(), {"try": 2})
    assert checkpoint.load(path).meta == {"try": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001"]


def test_a_crash_while_one_is_replaced_leaves_the_old_one_to_be_found(tmp_path: Path) -> None:
    blocks, _ = initial(spec())
    path = checkpoint.save(tmp_path, 4, blocks, spec(), {"try": 1})
    path.rename(path.with_suffix(".old"))  # as far as the second save had come
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.meta == {"try": 1}
    checkpoint.save(tmp_path, 5, blocks, spec(), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000004", "checkpoint-00000005"]


def test_an_empty_or_missing_root_has_no_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "never") is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_or_cut_file_makes_load_fall_back_and_say_so(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root, model = tmp_path_factory.mktemp("checkpoints"), spec(mode=Mode.LORA)
    blocks, base = initial(model)
    checkpoint.save(root, 1, blocks, model, {}, base=base)
    path = checkpoint.save(root, 2, blocks, model, {}, base=base)
    file = path / data.draw(st.sampled_from(sorted(p.name for p in path.iterdir())))
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(raw)
    found = checkpoint.latest(root)
    assert found is not None
    if found.version == 2:  # the manifest's own whitespace and meta are not covered by a digest
        assert file.name == "manifest.json" and same(found.blocks, blocks)
    else:
        assert found.version == 1 and same(found.blocks, blocks)
        assert "checkpoint-00000002" in found.passed_over[0]


def test_where_every_checkpoint_is_damaged_the_error_names_them_all(tmp_path: Path) -> None:
    blocks, _ = initial(spec())
    for version in (1, 2):
        (checkpoint.save(tmp_path, version, blocks, spec(), {}) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00000002: model.safetensors is missing.*00000001"):
        checkpoint.latest(tmp_path)


SAVING = """
import sys
from pathlib import Path
from coordinator import checkpoint
from models.partition import initial
from models.spec import InputSpec, ModelSpec
model = ModelSpec((InputSpec("hand", 3, 40),), 4, widths=(4, 6), fusion=8)
blocks, _ = initial(model)
print("ready", flush=True)
for version in range(1, 10_000):
    checkpoint.save(Path(sys.argv[1]), version // 2, {k: v * 0 + version for k, v in blocks.items()}, model, {})
    print(version, flush=True)
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_while_saving_leaves_the_last_acknowledged_checkpoint_or_the_next(tmp_path: Path, seed: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        first = child.stdout.readline()
        time.sleep(random.Random(seed).uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        acked = [int(line) for line in (first + child.stdout.read()).split()]
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.passed_over == ()
    values = {float(x) for vector in found.blocks.values() for x in np.unique(vector)}
    assert len(values) == 1 and values.pop() in (acked[-1], acked[-1] + 1)
