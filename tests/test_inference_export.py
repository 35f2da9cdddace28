"""`relief export`: checkpoints become kits, the kit before stays, and nothing changes when something is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from coordinator import checkpoint
from device_runtime.inference import Engine
from models.kit import Scale, load
from models.partition import initial
from models.spec import InputSpec, Mode, ModelSpec
from tools.export import export, roll_back, write

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra: infer)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")

SPEC = ModelSpec((InputSpec("hand", 2, 40),), classes=3, mode=Mode.LORA, widths=(4,))


def checkpointed(root: Path, version: int) -> None:
    blocks, base = initial(SPEC)
    meta = {"versions": {"hand": version, "shared": version + 1}, "scales": {"hand": [[1.0, 2.0], [3.0, 4.0]]}}
    checkpoint.save(root, version, blocks, SPEC, meta, base=base)


def test_a_checkpoint_becomes_a_kit_with_its_versions_and_normalisation(tmp_path: Path) -> None:
    checkpointed(tmp_path / "run", 7)
    done: list[float] = []
    made = write(tmp_path / "run", tmp_path / "kits", done.append)
    assert 0.0 < done[0] < done[-1] == 1.0 and done == sorted(done), "its progress"
    kit = load(tmp_path / "kits/current")
    assert made.name == "kit-00000007"
    assert kit.versions == {"hand": 7, "shared": 8} and kit.scale == {"hand": Scale((1.0, 2.0), (3.0, 4.0))}
    assert Engine(kit).predict({"hand": np.ones((1, 2, 40), np.float32)}).versions == {"hand": 7, "shared": 8}


def test_the_kit_before_stays_and_comes_back_at_once(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    for version in (1, 2, 3):
        checkpointed(tmp_path / "run", version)
        write(tmp_path / "run", kits)
    assert load(kits / "current").version == 3 and load(kits / "previous").version == 2
    assert sorted(p.name for p in kits.iterdir()) == ["current", "kit-00000002", "kit-00000003", "previous"]
    roll_back(kits)
    assert load(kits / "current").version == 2 and load(kits / "previous").version == 3


def test_a_damaged_or_missing_checkpoint_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint in"):
        write(tmp_path / "run", tmp_path / "kits")
    checkpointed(tmp_path / "run", 1)
    (tmp_path / "run/checkpoint-00000001/base.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=re.escape("base.safetensors")):
        write(tmp_path / "run", tmp_path / "kits")
    assert not (tmp_path / "kits").exists()


def test_the_command_writes_goes_back_and_says_what_is_missing(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(export)
    checkpointed(tmp_path / "run", 4)
    kits = str(tmp_path / "kits")
    done = CliRunner().invoke(app, [str(tmp_path / "run"), "--out", kits])
    assert done.exit_code == 0 and "kit-00000004" in done.output
    again = CliRunner().invoke(app, [str(tmp_path / "run"), "--out", kits])
    assert again.exit_code != 0 and "is there already" in str(again.exception)
    back = CliRunner().invoke(app, ["--out", kits, "--back"])
    assert back.exit_code != 0 and "no previous kit" in str(back.exception)
