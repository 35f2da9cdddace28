"""Checkpoints: a committed model as files that anyone can read, whole or not there at all.

    <root>/checkpoint-00000012/
        model.safetensors       every trained tensor under its parameter's name (mode full)
        adapter_model.safetensors, adapter_config.json, base.safetensors    the same under PEFT's file names (mode lora)
        manifest.json           version, block versions, spec, meta, and the sha256 of every file beside it

Written aside, fsynced, renamed; the root is fsynced last. Reading checks every digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from coordinator.segment import sync_directory
from models.partition import Partition, Vector, partition
from models.spec import Mode, ModelSpec

FORMAT = 1
PREFIX = "checkpoint-"
MANIFEST = "manifest.json"
OLD = ".old"


class CheckpointError(Exception):
    """A checkpoint that cannot be used: which file, and what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"checkpoint {path}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was committed.

    blocks    block -> trained vector; base: block -> frozen vector (mode lora)
    versions  block -> version, as given to `save`
    passed_over    why newer checkpoints beside it were not taken; empty if this is the one that was asked for
    """

    path: Path
    version: int
    blocks: dict[str, Vector]
    base: dict[str, Vector]
    spec: ModelSpec
    versions: dict[str, int] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()


def save(
    root: Path,
    version: int,
    blocks: Mapping[str, Vector],
    spec: ModelSpec,
    meta: Mapping[str, Any],
    *,
    base: Mapping[str, Vector] | None = None,
    versions: Mapping[str, int] | None = None,
    keep: int = 3,
) -> Path:
    """Write checkpoint `version` below `root`, durably, and drop all but the newest `keep`. Returns its directory.

    `meta` is what JSON takes; `base` the frozen vectors (needed in mode lora). ValueError where a block is missing or
    has the wrong length; OSError where the disk is full, with nothing left behind.
    """
    files = _files(spec, blocks, base or {})
    manifest = {
        "format": FORMAT,
        "version": version,
        "versions": dict(versions or {}),
        "spec": spec.to_dict(),
        "meta": dict(meta),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    # Read last and written last: a directory without it is no checkpoint.
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    path, aside = _path(root, version), root / f".{version}.tmp"
    aside.mkdir()
    try:
        for name, content in files.items():
            _write(aside / name, content)
        sync_directory(aside)
        if path.exists():
            path.rename(path.with_suffix(OLD))
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(root)
    _sweep(root)
    for old in _all(root)[keep:]:
        shutil.rmtree(old)
    return path


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest older good one beside it, which then says why in `passed_over`.

    Raises CheckpointError where none is good.
    """
    older = [other for other in _all(path.parent) if other.name < path.name]
    passed_over: list[str] = []
    for candidate in [path, *older]:
        try:
            return _read(candidate, tuple(passed_over))
        except CheckpointError as error:
            passed_over.append(str(error))
    raise CheckpointError(path, "no good checkpoint here: " + "; ".join(passed_over))


def latest(root: Path) -> Checkpoint | None:
    """The newest good checkpoint below `root`, None where there are none. CheckpointError where all are damaged."""
    found = _all(root) if root.exists() else []
    return load(found[0]) if found else None


def _path(root: Path, version: int) -> Path:
    return root / f"{PREFIX}{version:08d}"


def _all(root: Path) -> list[Path]:
    """Newest first; one that was being replaced stands behind its replacement."""
    found = [p for p in root.glob(PREFIX + "*") if p.is_dir()]
    return sorted(found, key=lambda p: (p.stem, p.suffix != OLD), reverse=True)


def _sweep(root: Path) -> None:
    """Remove what an interrupted `save` left; put back what it had moved aside without a replacement."""
    for old in root.glob(PREFIX + "*" + OLD):
        place = old.with_suffix("")
        if place.exists():
            shutil.rmtree(old)
        else:
            old.rename(place)
    for left in root.glob(".*.tmp"):
        shutil.rmtree(left)


def _files(spec: ModelSpec, blocks: Mapping[str, Vector], base: Mapping[str, Vector]) -> dict[str, bytes]:
    cut = partition(spec)
    trained = save_tensors(_tensors(cut, blocks, base=False), {"format": "np"})
    if spec.mode is Mode.FULL:
        return {"model.safetensors": trained}
    config = {
        "peft_type": "LORA",
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "target_modules": ["fusion"],
        "modules_to_save": ["head"],
        "bias": "lora_only",
        "inference_mode": True,
        "base_model_name_or_path": "base.safetensors",
    }
    return {
        "adapter_model.safetensors": trained,
        "adapter_config.json": json.dumps(config, indent=1).encode(),
        "base.safetensors": save_tensors(_tensors(cut, base, base=True), {"format": "np"}),
    }


def _tensors(cut: Partition, vectors: Mapping[str, Vector], *, base: bool) -> dict[str, Vector]:
    tensors: dict[str, Vector] = {}
    for block in cut.frozen if base else cut.trainable:
        if block not in vectors:
            raise ValueError(f"checkpoint: {'base of ' if base else ''}block {block} is missing")
        tensors.update(cut.views(block, np.ascontiguousarray(vectors[block]), base=base))
    return tensors


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, passed_over: tuple[str, ...]) -> Checkpoint:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CheckpointError(path, f"format {manifest['format']}, this version reads {FORMAT}")
        contents = {name: (path / name).read_bytes() for name in manifest["sha256"]}
        for name, digest in manifest["sha256"].items():
            if hashlib.sha256(contents[name]).hexdigest() != digest:
                raise CheckpointError(path, f"{name} does not have the sha256 in {MANIFEST}")
        spec = ModelSpec.from_dict(manifest["spec"])
        cut, lora = partition(spec), spec.mode is Mode.LORA
        trained = load_tensors(contents["adapter_model.safetensors" if lora else "model.safetensors"])
        frozen = load_tensors(contents["base.safetensors"]) if lora else {}
        return Checkpoint(
            path,
            int(manifest["version"]),
            {block: _joined(trained, [t.name for t in layout]) for block, layout in cut.trainable.items()},
            {block: _joined(frozen, [t.name for t in layout]) for block, layout in cut.frozen.items()},
            spec,
            dict(manifest["versions"]),
            dict(manifest["meta"]),
            passed_over,
        )
    except FileNotFoundError as error:
        raise CheckpointError(path, f"{Path(error.filename).name} is missing") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read ({type(error).__name__}: {error})") from None


def _joined(tensors: dict[str, Vector], names: list[str]) -> Vector:
    return np.concatenate([tensors[name].ravel() for name in names]) if names else np.zeros(0, np.float32)
