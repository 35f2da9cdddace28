"""The partition: every trainable tensor in exactly one block, a block per modality plus the shared one.

Aggregation, elastic training and communication all go block by block through it, and no other code
knows which tensor belongs to which modality. A block is one flat vector; its layout names the tensors
inside, so that what travels is the vector's own bytes and averaging is arithmetic on vectors. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from models.spec import SHARED, BPolicy, InputSpec, Mode, ModelSpec

Vector = npt.NDArray[Any]  # one-dimensional, float32 unless a run says float64


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's place in its block. `name` is the parameter's name in models.network.Network."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Partition:
    """trainable: block -> layout of what is trained; frozen: block -> layout of its base (lora only)."""

    spec: ModelSpec
    trainable: dict[str, tuple[TensorSpec, ...]]
    frozen: dict[str, tuple[TensorSpec, ...]]

    @property
    def blocks(self) -> tuple[str, ...]:
        """All block names, the modalities in the model's order, then the shared one."""
        return tuple(self.trainable)

    def size(self, block: str) -> int:
        """Number of trainable values in `block`."""
        return sum(t.size for t in self.trainable[block])

    def base_size(self, block: str) -> int:
        """Number of frozen base values that belong to `block` (0 in mode full)."""
        return sum(t.size for t in self.frozen.get(block, ()))

    def views(self, block: str, vector: Vector, *, base: bool = False) -> dict[str, Vector]:
        """The tensors of `block` as views into `vector`, no copies. ValueError if its length is wrong."""
        layout = self.frozen.get(block, ()) if base else self.trainable[block]
        expected = sum(t.size for t in layout)
        if vector.shape != (expected,):
            raise ValueError(f"block {block}: expected a vector of {expected} values, got shape {vector.shape}")
        tensors, start = {}, 0
        for t in layout:
            tensors[t.name] = vector[start : start + t.size].reshape(t.shape)
            start += t.size
        return tensors


@lru_cache(maxsize=64)  # asked for with every assignment
def partition(spec: ModelSpec) -> Partition:
    """Cut the model of `spec` into blocks (arXiv 2604.04243: column blocks of the fusion projection)."""
    trainable: dict[str, tuple[TensorSpec, ...]] = {}
    frozen: dict[str, tuple[TensorSpec, ...]] = {}
    for i in spec.inputs:
        base = (
            *_encoder(spec, i),
            TensorSpec(f"fusion.weight.{i.name}", (spec.fusion, spec.features(i.name))),
        )
        if spec.mode is Mode.FULL:
            trainable[i.name] = base
        else:
            lora_a = TensorSpec(f"fusion.lora_a.{i.name}", (spec.rank, spec.features(i.name)))
            trainable[i.name] = (lora_a, *_encoder_adapters(spec, i))
            frozen[i.name] = base
    lora_b = TensorSpec("fusion.lora_b", (spec.fusion, spec.rank))
    tail = (
        TensorSpec("fusion.bias", (spec.fusion,)),
        TensorSpec("head.weight", (spec.classes, spec.fusion)),
        TensorSpec("head.bias", (spec.classes,)),
    )
    if spec.mode is Mode.FULL:
        trainable[SHARED] = tail
    elif spec.b_policy is BPolicy.FROZEN:
        trainable[SHARED], frozen[SHARED] = tail, (lora_b,)
    else:
        trainable[SHARED] = (lora_b, *tail)
    return Partition(spec, trainable, frozen)


def resting(spec: ModelSpec, round: int) -> str:
    """What the names of the tensors begin with that are not trained in this round; empty where all are.

    B comes first: it is zero at the start, and with it the gradient of A.
    """
    if spec.mode is not Mode.LORA or spec.b_policy is not BPolicy.ALTERNATE:
        return ""
    return "fusion.lora_a" if round % 2 else "fusion.lora_b"


def without(cut: Partition, name: str) -> dict[str, Vector]:
    """block -> 0/1 per value: 0 in tensors whose names begin with `name`."""
    masks = {}
    for block in cut.blocks:
        masks[block] = np.ones(cut.size(block), np.float32)
        for tensor, view in cut.views(block, masks[block]).items():
            if tensor.startswith(name):
                view[...] = 0.0
    return masks


def _encoder(spec: ModelSpec, i: InputSpec) -> tuple[TensorSpec, ...]:
    tensors, inside = [], i.channels
    for layer, outside in enumerate(spec.widths):
        tensors.append(TensorSpec(f"encoders.{i.name}.{layer}.weight", (outside, inside, spec.kernel)))
        tensors.append(TensorSpec(f"encoders.{i.name}.{layer}.bias", (outside,)))
        inside = outside
    return tuple(tensors)


def _encoder_adapters(spec: ModelSpec, i: InputSpec) -> tuple[TensorSpec, ...]:
    """Low-rank adapters of the convolutions: down (r, in * kernel), up (out, r)."""
    tensors, inside = [], i.channels
    if spec.encoder_rank:
        for layer, outside in enumerate(spec.widths):
            rank = min(spec.encoder_rank, outside)
            tensors.append(TensorSpec(f"encoders.{i.name}.{layer}.down", (rank, inside * spec.kernel)))
            tensors.append(TensorSpec(f"encoders.{i.name}.{layer}.up", (outside, rank)))
            inside = outside
    return tuple(tensors)


def initial(spec: ModelSpec) -> tuple[dict[str, Vector], dict[str, Vector]]:
    """Freshly initialised (trainable, frozen) vectors, float32, the same bits on every machine for a seed.

    He-normal weights, zero biases. LoRA: A random and B zero, so training starts at the base model;
    with a frozen B, B is orthonormal and A zero, for the same reason.
    """
    cut = partition(spec)

    def fill(layouts: dict[str, tuple[TensorSpec, ...]], stream: int) -> dict[str, Vector]:
        filled = {}
        for n, (block, layout) in enumerate(layouts.items()):
            rng = np.random.Generator(np.random.PCG64([spec.seed, stream, n]))
            parts = [_initial_tensor(spec, t, rng) for t in layout]
            filled[block] = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return filled

    return fill(cut.trainable, 0), fill(cut.frozen, 1)


def _initial_tensor(spec: ModelSpec, t: TensorSpec, rng: np.random.Generator) -> Vector:
    part = t.name.rsplit(".", 1)[-1]
    zero = part in ("bias", "up") or t.name == "fusion.bias"
    if t.name == "fusion.lora_b" and spec.b_policy is BPolicy.FROZEN:
        q, r = np.linalg.qr(rng.standard_normal(t.shape))
        orthonormal: Vector = np.asarray(q * np.sign(np.diag(r)), np.float32).ravel()
        return orthonormal
    zero |= t.name == "fusion.lora_b"
    zero |= t.name.startswith("fusion.lora_a") and spec.b_policy is BPolicy.FROZEN
    if zero:
        return np.zeros(t.size, np.float32)
    fan_in = prod(t.shape[1:])
    if t.name.startswith("fusion.weight"):
        # z sums over the modalities that are present; scaled as if all were.
        fan_in *= len(spec.inputs)
    normal: Vector = (rng.standard_normal(t.size) * np.sqrt(2.0 / fan_in)).astype(np.float32)
    return normal
