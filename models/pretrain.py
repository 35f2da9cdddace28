"""A base model for lora: trained in one place on given subjects' windows, then frozen under the LoRA blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from models.network import Network
from models.partition import Vector, initial, partition
from models.spec import SHARED, Mode, ModelSpec


def pretrain(
    spec: ModelSpec,
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    *,
    epochs: int = 20,
    learning_rate: float = 0.05,
    batch: int = 32,
    dropout: float = 0.3,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> dict[str, Vector]:
    """Train every parameter on normalised windows: x {m: (N, channels, samples)}, y (N,). Returns block -> vector.

    Modalities are dropped at random (`dropout`), so that the base serves devices with any subset of them.
    """
    network = Network(replace(spec, mode=Mode.FULL))
    tensors = {m: torch.from_numpy(np.ascontiguousarray(x[m], np.float32)) for m in spec.names if m in x}
    target = torch.from_numpy(np.asarray(y, np.int64))
    rng = np.random.Generator(np.random.PCG64(seed))
    optimiser = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    steps = epochs * -(-len(target) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in np.array_split(rng.permutation(len(target)), -(-len(target) // batch)):
            kept = [m for m in tensors if rng.random() >= dropout] or [str(rng.choice(list(tensors)))]
            loss = F.cross_entropy(network({m: tensors[m][rows] for m in kept}), target[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        progress(epoch + 1, total / len(target))
    return {block: network.read(block) for block in network.cut.blocks}


def lora_from(full: Mapping[str, Vector], spec: ModelSpec) -> tuple[dict[str, Vector], dict[str, Vector]]:
    """(trainable, frozen) vectors of lora model `spec` upon a model trained in mode full with the same sizes.

    Encoders and W_m become the frozen base; bias and head go on being trained with the shared block.
    """
    whole = partition(replace(spec, mode=Mode.FULL))
    cut = partition(spec)
    start, base = initial(spec)
    for m in spec.names:
        expected = cut.base_size(m)
        if full[m].shape != (expected,):
            raise ValueError(f"base block {m}: {full[m].size} values, the model of the configuration needs {expected}")
        base[m] = full[m].astype(np.float32)
    tail = whole.views(SHARED, full[SHARED])
    shared = start[SHARED].copy()
    for name, view in cut.views(SHARED, shared).items():
        if name in tail:
            view[...] = tail[name]
    start[SHARED] = shared
    return start, base
