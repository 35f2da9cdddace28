"""Stacked weights of many devices: what a group of units holds, how it descends, and its forward pass.

A unit is one device's block of one modality. Units of one table have windows of one shape, so their vectors stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.local import Local, hidden
from models.partition import Vector
from tools.lab.engine import Job, Table
from tools.lab.stacked import Layout, Tensors

Chosen = slice | Tensor  # rows of a stack: the first ones, or an index
Saved = list[tuple[Tensor, Tensor]]


class Trained:
    """Stacked vectors under training, a row each: values, momentum and what limits them."""

    def __init__(self, layout: Layout, bases: Sequence[Vector], masks: Sequence[Vector | None], local: Local) -> None:
        dtype = torch.float64 if local.double else torch.float32
        self.layout, self.local = layout, local
        self.base = layout.stack(bases, dtype)
        self.flat = self.base.clone()
        self.velocity = torch.zeros_like(self.flat) if local.momentum else None
        self.masks: Tensor | None = None
        if any(mask is not None for mask in masks):
            whole = np.ones(layout.size, np.float32)
            self.masks = layout.stack([whole if mask is None else mask for mask in masks], dtype)

    def complete(self, chosen: Chosen, gradient: Tensor) -> None:
        """Add the proximal pull to the gradient, then hide what the mask hides."""
        if self.local.prox:
            gradient.add_(self.flat[chosen] - self.base[chosen], alpha=self.local.prox)
        if self.masks is not None:
            gradient.mul_(self.masks[chosen])

    def descend(self, chosen: Chosen, gradient: Tensor) -> None:
        """One step of SGD with heavy-ball momentum on the chosen rows."""
        step = gradient
        if self.velocity is not None:
            step = self.velocity[chosen].mul_(self.local.momentum).add_(gradient)
            if not isinstance(chosen, slice):  # a copy, no view
                self.velocity.index_copy_(0, chosen, step)
        if isinstance(chosen, slice):
            self.flat[chosen].add_(step, alpha=-self.local.lr)
        else:
            self.flat.index_add_(0, chosen, step, alpha=-self.local.lr)

    def deltas(self) -> Vector:
        return self.layout.unstack(self.flat - self.base)


class Units(Trained):
    """The units of one table within a stack of jobs; `zero` ones see the row of zeros and need one row, not a batch.

    Sorted by steps, so that without dropout the units of a step are the first ones.
    """

    def __init__(self, table: Table, jobs: Sequence[Job], pairs: list[tuple[int, str]], zero: bool, local: Local):
        self.table, self.zero = table, zero
        self.pairs = sorted(pairs, key=lambda pair: -jobs[pair[0]].steps.get(pair[1], 0))
        super().__init__(
            table.layout,
            [jobs[j].base[m] for j, m in self.pairs],
            [jobs[j].masks.get(m) for j, m in self.pairs],
            local,
        )
        self.job = torch.tensor([j for j, _ in self.pairs])
        self.steps = np.array([jobs[j].steps.get(m, 0) for j, m in self.pairs])
        self.totals = np.array([jobs[j].total for j, _ in self.pairs])
        members = [table.names.index(m) for _, m in self.pairs]
        self.offset = torch.tensor([table.zero_rows[n] if zero else table.offsets[n] for n in members])
        self.zero_row = torch.tensor([table.zero_rows[n] for n in members])
        unseen = [hidden(local, job.device, job.round, table.spec.ordered(job.owned)) for job in jobs]
        self.hides = torch.tensor([m in unseen[j] for j, m in self.pairs])
        self.frozen: Tensor | None = None
        if table.frozen is not None and table.fused is None:
            self.frozen = table.frozen[torch.tensor(members)].to(self.flat.dtype)
        counts = [1 if zero else len(jobs[j].windows) for j, _ in self.pairs]
        self.start = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])[:-1])
        self.kept_rows = int(sum(counts))
        self.kept: Tensor | None = None  # (rows, d [+ rank]) what frozen blocks contribute, unit after unit

    def rows(self, chosen: Chosen, windows: Tensor, batch: int) -> Tensor:
        """Rows of the table for these units: (units, batch), or (units, 1) where the input is zero.

        What `windows` has behind `batch` is the second view, in which hidden units read the row of zeros.
        """
        offset = self.offset[chosen].unsqueeze(1)
        if self.zero:
            return offset
        rows = windows[self.job[chosen]] + offset
        if rows.shape[1] > batch:
            zeros, hides = self.zero_row[chosen].unsqueeze(1), self.hides[chosen].unsqueeze(1)
            rows[:, batch:] = torch.where(hides, zeros, rows[:, batch:])
        return rows

    def gather(self, values: Tensor, rows: Tensor) -> Tensor:
        found = values.index_select(0, rows.reshape(-1)).to(self.flat.dtype)
        return found.view(*rows.shape, *values.shape[1:])

    def contribute(self, chosen: Chosen, flat: Tensor, rows: Tensor) -> Forward:
        """Forward pass of units with the weights `flat` on these rows of the table."""
        weights = self.table.layout.views(flat)
        effective: Tensors = weights
        saved: Saved = []
        if self.table.features is not None:
            h = self.gather(self.table.features, rows)
        else:
            if self.frozen is not None:
                effective = self._adapted(self.frozen[chosen], weights)
            h, saved = self.table.encoder.forward(effective, self.gather(self.table.x, rows))
        if self.table.fused is not None:
            fused = self.gather(self.table.fused, rows)
        else:
            fused = torch.bmm(h, effective["fusion"])
        low = torch.bmm(h, weights["lora_a"]) if "lora_a" in weights else None
        return Forward(weights, effective, h, fused, low, saved)

    def _adapted(self, frozen: Tensor, weights: Tensors) -> Tensors:
        """Frozen convolutions with their low-rank adapters added."""
        base = self.table.frozen_layout.views(frozen)
        for i in range(len(self.table.spec.widths)):
            name = f"{i}.weight"
            base[name] = torch.baddbmm(base[name], weights[f"{i}.down"], weights[f"{i}.up"])
        return base


@dataclass
class Forward:
    """One group's forward pass: h (units, rows, d_m), its share of z (units, rows, d) and of A h (units, rows, r)."""

    weights: Tensors
    effective: Tensors  # weights with adapters applied
    h: Tensor
    fused: Tensor
    low: Tensor | None
    saved: Saved


def add(forward: Forward, job: Tensor, z: Tensor, low: Tensor | None) -> None:
    """Add the units' shares to those of their jobs; one row stands for all where the input is zero."""
    z.index_add_(0, job, forward.fused.expand(len(job), *z.shape[1:]))
    if low is not None and forward.low is not None:
        low.index_add_(0, job, forward.low.expand(len(job), *low.shape[1:]))
