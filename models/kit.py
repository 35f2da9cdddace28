"""An inference kit: the model as ONNX graph parts plus its tensors, so that a device can run it without torch.

    <kit>/kit.json              format, spec, versions, normalisation, and the sha256 of every file beside it
    <kit>/<modality>.part       nodes of one encoder and its share of the fusion layer, a fragment of an ONNX ModelProto
    <kit>/shared.part           header, fusion and head
    <kit>/tensors.safetensors   every tensor, trained and frozen, under its parameter's name
    <kit>/model.onnx            the same model in one piece with all modalities, for other tools

The parts hold structure only. Put together for any subset of the modalities, with tensors added, they are a model; so
new block versions need no new export, and 2^M subsets need no 2^M files. Read with numpy and safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from models.partition import Vector, partition
from models.spec import SHARED, ModelSpec

FORMAT = 1
DESCRIPTION = "kit.json"
TENSORS = "tensors.safetensors"
WHOLE = "model.onnx"


class KitError(Exception):
    """A kit that cannot be used: where, why, and what to do."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"inference kit {path}: {reason}; export it again with: relief export")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Scale:
    """Normalisation of one modality's channels: (value - center) / width."""

    center: tuple[float, ...]
    width: tuple[float, ...]


@dataclass(frozen=True)
class Kit:
    """A model ready for inference.

    parts     modality, or "shared" -> bytes of its graph part
    blocks    block -> trained vector; base: block -> frozen vector
    versions  block -> version
    scale     modality -> normalisation; empty where windows come normalised
    """

    spec: ModelSpec
    version: int
    parts: dict[str, bytes]
    blocks: dict[str, Vector]
    base: dict[str, Vector] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    scale: dict[str, Scale] = field(default_factory=dict)


def save(kit: Kit, folder: Path, whole: bytes = b"") -> None:
    """Write the kit into the new directory `folder`. FileExistsError if it is there already."""
    cut = partition(kit.spec)
    tensors: dict[str, Any] = {}
    for layouts, vectors, base in ((cut.trainable, kit.blocks, False), (cut.frozen, kit.base, True)):
        for block in layouts:
            tensors.update(cut.views(block, np.ascontiguousarray(vectors[block], np.float32), base=base))
    files = {f"{name}.part": part for name, part in kit.parts.items()}
    files[TENSORS] = save_tensors(tensors, {"format": "np"})
    if whole:
        files[WHOLE] = whole
    description = {
        "format": FORMAT,
        "version": kit.version,
        "versions": kit.versions,
        "spec": kit.spec.to_dict(),
        "scale": {m: {"center": list(s.center), "width": list(s.width)} for m, s in kit.scale.items()},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[DESCRIPTION] = json.dumps(description, indent=1).encode()
    folder.mkdir(parents=True)
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def load(folder: Path) -> Kit:
    """Read and check a kit. Raises KitError, naming the file that is wrong."""
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        if description["format"] != FORMAT:
            raise KitError(folder, f"format {description['format']}, this version reads {FORMAT}")
        spec = ModelSpec.from_dict(description["spec"])
        digests: Mapping[str, str] = description["sha256"]
        wanted = [*(f"{name}.part" for name in (*spec.names, SHARED)), TENSORS]
        contents = {name: _checked(folder, name, digests) for name in wanted}
        tensors = load_tensors(contents[TENSORS])
        cut = partition(spec)
        joined = [
            {b: _joined(tensors, [t.name for t in layout]) for b, layout in layouts.items()}
            for layouts in (cut.trainable, cut.frozen)
        ]
        return Kit(
            spec,
            int(description["version"]),
            {name: contents[f"{name}.part"] for name in (*spec.names, SHARED)},
            joined[0],
            joined[1],
            dict(description["versions"]),
            {m: Scale(tuple(s["center"]), tuple(s["width"])) for m, s in description["scale"].items()},
        )
    except FileNotFoundError as error:
        raise KitError(folder, f"{Path(error.filename).name} is missing") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError, SafetensorError) as error:
        raise KitError(folder, f"cannot be read ({type(error).__name__}: {error})") from None


def _checked(folder: Path, name: str, digests: Mapping[str, str]) -> bytes:
    content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != digests.get(name):
        raise KitError(folder, f"{name} does not have the sha256 in {DESCRIPTION}")
    return content


def _joined(tensors: Mapping[str, Vector], names: list[str]) -> Vector:
    return np.concatenate([tensors[name].ravel() for name in names]) if names else np.zeros(0, np.float32)
