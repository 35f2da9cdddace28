"""Trains many devices at once: the local rule of models/local.py as batched tensor operations.

Every (device, modality) pair is a unit; units with windows of equal shape are stacked, whatever else their devices
own (units.py, lockstep.py). Windows are kept once and indexed, and what cannot change is computed once: features of
frozen blocks per round, those of frozen encoders for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.local import Local
from models.partition import Partition, Vector, partition, resting, without
from models.spec import SHARED, Mode, ModelSpec
from tools.lab.stacked import Convolutions, layout_of

CHUNK_VALUES = 2_000_000  # activations of the devices that step together: what stays in a CPU's cache


@dataclass(frozen=True)
class Job:
    """One device's work in a round.

    windows   rows of the engine's data that the device trains on
    owned     modalities that it has data of; with `local.zero_fill` the others are fed as zeros
    steps     local steps per block, as in an Assignment
    base      block -> vector the training starts from (every block it computes with)
    masks     block -> 0/1 per value: where 0 the gradient is not followed (sub-models of HeteroFL and its like)
    """

    device: str
    round: int
    windows: npt.NDArray[np.int64]
    owned: tuple[str, ...]
    steps: Mapping[str, int]
    base: Mapping[str, Vector]
    local: Local
    masks: Mapping[str, Vector] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return max(self.steps.values(), default=0)


@dataclass(frozen=True)
class Work:
    """What a job came to.

    deltas   trained minus base per block that took a step; steps  how many; loss  mean over the job's steps
    there    modality -> steps in which it took part, trained or frozen (all of them without dropout)
    passes, looks   forward and backward passes of a step, and forward passes (models.local.Local)
    entropy  of the last epoch's predictions, in nats, with `contrast` or `distil`; else 0
    """

    deltas: dict[str, Vector]
    steps: dict[str, int]
    loss: float
    there: dict[str, int]
    passes: int = 1
    looks: int = 1
    entropy: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether there is anything to send: a device whose training gave other values declines (device_runtime)."""
        return all(bool(np.isfinite(delta).all()) for delta in self.deltas.values())


class Engine:
    """Holds the windows and the frozen base; `train` runs a round of many devices.

    x        modality -> (N, channels, samples), already scaled; y  (N,) class index
    frozen   block -> vector of the frozen base (lora)
    """

    def __init__(
        self, spec: ModelSpec, x: Mapping[str, Vector], y: Vector, frozen: Mapping[str, Vector] | None = None
    ) -> None:
        self.spec, self.cut = spec, partition(spec)
        self.y = torch.as_tensor(y, dtype=torch.long)
        self.resident = spec.mode is Mode.LORA and not spec.encoder_rank
        self.shapes: dict[tuple[int, int], Table] = {}
        for i in spec.inputs:
            self.shapes.setdefault((i.channels, i.samples), Table(spec, i.channels, i.samples)).add(i.name, x[i.name])
        for shape in self.shapes.values():
            shape.finish(self.cut, frozen or {}, self.resident)
        self.shared = layout_of(spec, self.cut.trainable[SHARED])
        self._hidden: dict[str, dict[str, Vector]] = {}  # what rests -> masks
        self.frozen_b: Tensor | None = None
        if spec.mode is Mode.LORA and SHARED in self.cut.frozen:
            layout = layout_of(spec, self.cut.frozen[SHARED])
            self.frozen_b = layout.views(layout.stack([(frozen or {})[SHARED]], torch.float64))["fusion.lora_b"]

    def train(self, jobs: Sequence[Job]) -> list[Work]:
        """Every job's work, in the order of `jobs`. Jobs of the same local rule run together."""
        from tools.lab.lockstep import Stack

        jobs = [self._resting(job) for job in jobs]
        works: dict[int, Work] = {}
        by_rule: dict[tuple[Local, int], list[int]] = {}
        for n, job in enumerate(jobs):
            by_rule.setdefault((job.local, job.local.passes(len(job.owned))), []).append(n)
        for (local, _), members in by_rule.items():
            for chunk in self._chunks(jobs, sorted(members, key=lambda n: -jobs[n].total)):
                works.update(zip(chunk, Stack(self, [jobs[n] for n in chunk], local).run(), strict=True))
        return [works[n] for n in range(len(jobs))]

    def _resting(self, job: Job) -> Job:
        """The job with what rests in its round hidden."""
        name = resting(self.spec, job.round)
        if not name:
            return job
        if name not in self._hidden:
            self._hidden[name] = without(self.cut, name)
        masks = {b: mask * job.masks[b] if b in job.masks else mask for b, mask in self._hidden[name].items()}
        return replace(job, masks=masks)

    def _chunks(self, jobs: Sequence[Job], members: Sequence[int]) -> list[list[int]]:
        chunks: list[list[int]] = []
        values = 0
        for n in members:
            job = jobs[n]
            names = self.spec.names if job.local.zero_fill else job.owned
            batch = job.local.batch * job.local.passes(len(job.owned))
            need = sum(self.table(m).values * (batch if m in job.owned else 1) for m in names)
            if not chunks or values + need > CHUNK_VALUES:
                chunks.append([])
                values = 0
            chunks[-1].append(n)
            values += need
        return chunks

    def table(self, name: str) -> Table:
        """The table that holds the windows of modality `name`."""
        i = self.spec.input(name)
        return self.shapes[i.channels, i.samples]


class Table:
    """All modalities whose windows have one shape: their windows in one table, their frozen base stacked.

    x          (rows, ...) as the encoder reads them; behind each modality's windows a row of zeros
    features   (rows, d_m) where the encoder is frozen for good or only flattens; fused  (rows, d) W_m h_m, if frozen
    frozen     (modalities, values) of the frozen base
    """

    def __init__(self, spec: ModelSpec, channels: int, samples: int) -> None:
        self.spec = spec
        self.encoder = Convolutions.of(spec, channels, samples)
        self.names: list[str] = []
        self.offsets: list[int] = []
        self._parts: list[Tensor] = []

    def add(self, name: str, x: Vector) -> None:
        self.names.append(name)
        self.offsets.append(sum(map(len, self._parts)))
        self._parts.append(self.encoder.padded(x))

    def finish(self, cut: Partition, frozen: Mapping[str, Vector], resident: bool) -> None:
        """Join the tables; with frozen encoders (`resident`) keep what they make of every window."""
        self.zero_rows = [start + len(part) - 1 for start, part in zip(self.offsets, self._parts, strict=True)]
        self.x = torch.cat(self._parts) if len(self._parts) > 1 else self._parts[0]
        self._parts = []
        self.layout = layout_of(self.spec, cut.trainable[self.names[0]])
        self.frozen_layout = layout_of(self.spec, cut.frozen.get(self.names[0], ()))
        self.frozen: Tensor | None = None
        self.features = None if self.spec.widths else self.x
        self.fused: Tensor | None = None
        if self.spec.mode is Mode.LORA:
            self.frozen = self.frozen_layout.stack([frozen[name] for name in self.names], torch.float32)
            if resident:
                self._make_resident(self.frozen)

    @property
    def values(self) -> int:
        """Activations that one window of one unit needs in a step."""
        count, inside = 2 * self.spec.fusion + self.spec.features(self.names[0]), self.encoder.channels
        if self.features is None:
            for length, width in zip(self.encoder.lengths[1:], self.spec.widths, strict=True):
                count += length * (self.spec.kernel * inside + 2 * width)
                inside = width
        return count

    def _make_resident(self, frozen: Tensor, rows_at_once: int = 256) -> None:
        features, fused = [], []
        for n in range(len(self.names)):
            weights = self.frozen_layout.views(frozen[n : n + 1])
            for x in torch.split(self.x[self.offsets[n] : self.zero_rows[n] + 1], rows_at_once):
                h = self.encoder.forward(weights, x.unsqueeze(0))[0][0] if self.spec.widths else x
                features.append(h)
                fused.append(h @ weights["fusion"][0])
        self.features, self.fused = torch.cat(features), torch.cat(fused)
        self.x = self.features[:0]  # the windows themselves are not needed any more
