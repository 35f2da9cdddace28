"""Devices in lockstep: the step loop over stacked units, forward and backward written out.

Units that have finished or were dropped are left out of a step; units whose block is frozen contribute what was
computed once. The gradient of the loss runs backwards by hand: head, fusion, then each group's encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.contrast import supervised_contrast
from models.local import Local, batches, kept, last_epoch
from models.partition import Vector
from models.spec import SHARED, Mode
from tools.lab.engine import Engine, Job, Work
from tools.lab.stacked import Tensors
from tools.lab.units import Chosen, Forward, Trained, Units, add


@dataclass
class _Step:
    units: Units
    chosen: Chosen
    job: Tensor
    forward: Forward
    gradient: Tensor = field(init=False)


class Stack:
    """Jobs that step together, sorted by their number of steps, the longest first."""

    def __init__(self, engine: Engine, jobs: Sequence[Job], local: Local) -> None:
        self.engine, self.jobs, self.local, self.spec = engine, jobs, local, engine.spec
        self.lora_scale = engine.spec.alpha / engine.spec.rank if engine.spec.mode is Mode.LORA else 0.0
        self.totals = np.array([job.total for job in jobs])
        self.tmax = int(self.totals.max(initial=0))
        # All jobs of a stack have as many views (Engine.train). Behind a step's windows come those of the second view.
        self.passes = local.passes(len(jobs[0].owned))
        self.last_epoch = np.array([last_epoch(local, len(job.windows), job.total) for job in jobs])
        self._draw()
        self.groups = self._group()
        self.shared = Trained(
            engine.shared, [job.base[SHARED] for job in jobs], [job.masks.get(SHARED) for job in jobs], local
        )
        self.shared_steps = np.array([job.steps.get(SHARED, 0) for job in jobs])
        self.loss = self.shared.flat.new_zeros(len(jobs))
        self.entropy = self.shared.flat.new_zeros(len(jobs))
        if self.local.contrast or self.local.distil:
            self._check_views()
        self.own: Tensor | None = None  # (D, 1, classes) 1 for classes that the job has windows of
        if local.own_classes:
            self.own = self.loss.new_zeros(len(jobs), 1, self.spec.classes)
            for j, job in enumerate(jobs):
                self.own[j, 0, engine.y[torch.from_numpy(job.windows)]] = 1.0
        self.lora_b = None if engine.frozen_b is None else engine.frozen_b.to(self.loss.dtype)

    def _draw(self) -> None:
        """Sampling and dropout of every job: positions within the job's windows, and rows of the engine's data."""
        shape = (self.tmax, len(self.jobs), self.local.batch)
        positions, windows = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        # In the model's order: the draws of dropout are matched to it.
        self.present = [
            tuple(m for m in self.spec.names if self.local.zero_fill or m in job.owned) for job in self.jobs
        ]
        self.keep: list[npt.NDArray[np.bool_]] = []
        for j, job in enumerate(self.jobs):
            drawn = batches(self.local, job.device, job.round, len(job.windows), job.total)
            positions[: job.total, j] = drawn
            windows[: job.total, j] = job.windows[drawn]
            if self.local.dropout:
                self.keep.append(kept(self.local, job.device, job.round, job.total, self.present[j]))
        self.positions = torch.from_numpy(positions)
        self.windows = torch.from_numpy(windows).repeat(1, 1, self.passes)

    def _check_views(self) -> None:
        """Second views and the base's predictions are there for methods that train everything in every step."""
        for group in self.groups:
            if (group.steps < group.totals).any():
                raise ValueError("contrast and distil need every present block trained in every step of the round")

    def _group(self) -> list[Units]:
        pairs: dict[tuple[tuple[int, int], bool], list[tuple[int, str]]] = {}
        for j, names in enumerate(self.present):
            for m in names:
                i = self.spec.input(m)
                pairs.setdefault(((i.channels, i.samples), m not in self.jobs[j].owned), []).append((j, m))
        groups = [Units(self.engine.shapes[s], self.jobs, p, zero, self.local) for (s, zero), p in pairs.items()]
        self.taking_part = [self._participation(group) for group in groups]
        return groups

    def _participation(self, group: Units) -> npt.NDArray[np.bool_]:
        """(steps, units): which units are there in each step."""
        there = group.totals[None, :] > np.arange(self.tmax)[:, None]
        if self.keep:
            for u, (j, m) in enumerate(group.pairs):
                there[: self.totals[j], u] &= self.keep[j][:, self.present[j].index(m)]
        return there

    @torch.no_grad()
    def run(self) -> list[Work]:
        """Take all steps; the jobs' works in their order."""
        for t in range(self.tmax):
            for group in self.groups:
                self._freeze(group, np.flatnonzero((group.steps == t) & (group.totals > t)))
            self._step(t)
        return self._collect()

    def _step(self, t: int) -> None:
        running = int((self.totals > t).sum())
        shared = self.engine.shared.views(self.shared.flat[:running])
        z, low = self._empty(shared, running, self.local.batch * self.passes)
        steps = self._forward(t, z, low)
        lora_b = self._joined(shared, z, low)
        gradient = torch.zeros_like(self.shared.flat[:running])
        into = self.engine.shared.views(gradient)
        dz = self._head(t, shared, into, z, self.engine.y[self.windows[t, :running]])
        dlow = None
        if low is not None and lora_b is not None:
            if "fusion.lora_b" in into:
                into["fusion.lora_b"].copy_(torch.bmm(low.transpose(1, 2), dz).mul_(self.lora_scale))
            dlow = torch.bmm(dz, lora_b.transpose(1, 2)).mul_(self.lora_scale)
        for step in steps:
            self._backward(step, dz, dlow)
        self._update(t, running, gradient, steps)

    def _empty(self, shared: Tensors, running: int, rows: int) -> tuple[Tensor, Tensor | None]:
        """z (D, rows, d) before any modality has added its share, and A h (D, rows, r) in lora."""
        z = shared["fusion.bias"].unsqueeze(1).repeat(1, rows, 1)
        return z, z.new_zeros(running, rows, self.spec.rank) if self.lora_scale else None

    def _joined(self, shared: Tensors, z: Tensor, low: Tensor | None) -> Tensor | None:
        """Add B A h to z; returns B (D, r, d), None without lora."""
        lora_b = shared.get("fusion.lora_b")
        if low is not None:
            if lora_b is None and self.lora_b is not None:
                lora_b = self.lora_b.expand(len(z), -1, -1)
            assert lora_b is not None
            z.baddbmm_(low, lora_b, alpha=self.lora_scale)
        return lora_b

    def _forward(self, t: int, z: Tensor, low: Tensor | None) -> list[_Step]:
        """Add every unit's share to z and low; returns the passes of those that are trained in this step."""
        steps = []
        for group, there in zip(self.groups, self.taking_part, strict=True):
            trained = group.steps > t
            live, still = np.flatnonzero(there[t] & trained), np.flatnonzero(there[t] & ~trained)
            if len(live):
                whole = int(live[-1]) == len(live) - 1
                chosen: Chosen = slice(0, len(live)) if whole else torch.from_numpy(live)
                job, flat = group.job[chosen], group.flat[chosen]
                forward = group.contribute(chosen, flat, group.rows(chosen, self.windows[t], self.local.batch))
                add(forward, job, z, low)
                steps.append(_Step(group, chosen, job, forward))
            if len(still):
                self._add_frozen(group, torch.from_numpy(still), self.positions[t], z, low)
        return steps

    def _base_prediction(self, t: int, running: int) -> Tensor:
        """Class probabilities (D, B, classes) of the vectors that the round began with, on the step's windows."""
        shared = self.engine.shared.views(self.shared.base[:running])
        z, low = self._empty(shared, running, self.local.batch)
        for group, there in zip(self.groups, self.taking_part, strict=True):
            chosen = torch.from_numpy(np.flatnonzero(there[t]))
            if len(chosen):
                rows = group.rows(chosen, self.windows[t, :, : self.local.batch], self.local.batch)
                add(group.contribute(chosen, group.base[chosen], rows), group.job[chosen], z, low)
        self._joined(shared, z, low)
        return torch.baddbmm(shared["head.bias"].unsqueeze(1), torch.relu(z), shared["head.weight"]).softmax(2)

    def _head(self, t: int, shared: Tensors, into: Tensors, z: Tensor, target: Tensor) -> Tensor:
        """Loss and its gradient through head and ReLU: fills the head's and the bias's gradients, returns dz."""
        running, rows = target.shape
        batch = self.local.batch
        a = torch.relu(z)  # (D, B, d), the second view behind the first
        logits = torch.baddbmm(shared["head.bias"].unsqueeze(1), a, shared["head.weight"])
        if self.own is not None:
            logits.mul_(self.own[:running])
        log_p = torch.log_softmax(logits, 2)
        self.loss[:running] -= log_p[:, :batch].gather(2, target[:, :batch].unsqueeze(2)).mean((1, 2))
        d = log_p.exp_()
        own = None
        if self.local.contrast or self.local.distil:
            own = d[:, :batch].clone()
            measured = torch.from_numpy(self.last_epoch[:running] <= t)
            self.entropy[:running] += torch.special.entr(own).sum(2).mean(1) * measured
        d.scatter_add_(2, target.unsqueeze(2), d.new_full((1, 1, 1), -1.0).expand(running, rows, 1))
        d[:, batch:] = 0.0  # the cross-entropy sees the first view only
        if own is not None and self.local.distil:
            d[:, :batch].add_(own - self._base_prediction(t, running), alpha=self.local.distil)
        d.mul_(1.0 / batch)
        if self.own is not None:
            d.mul_(self.own[:running])
        into["head.weight"].copy_(torch.bmm(a.transpose(1, 2), d))
        into["head.bias"].copy_(d.sum(1))
        da = torch.bmm(d, shared["head.weight"].transpose(1, 2))
        if self.passes > 1:
            da.add_(self._contrast(a, target[:, :batch]), alpha=self.local.contrast)
        dz: Tensor = torch.ops.aten.threshold_backward(da, z, 0.0)
        into["fusion.bias"].copy_(dz.sum(1))
        return dz

    def _contrast(self, a: Tensor, y: Tensor) -> Tensor:
        """Gradient of the contrast between the two views with respect to what the head reads (D, 2B, d)."""
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            first, second = a[:, : self.local.batch], a[:, self.local.batch :]
            loss = supervised_contrast(first, second, y, self.local.temperature).sum()
            (gradient,) = torch.autograd.grad(loss, a)
        return gradient

    def _backward(self, step: _Step, dz: Tensor, dlow: Tensor | None) -> None:
        units, forward = step.units, step.forward
        step.gradient = torch.empty(len(step.job), units.layout.size, dtype=dz.dtype)
        into = units.layout.views(step.gradient)
        d = dz.index_select(0, step.job)  # (units, B, d)
        d = d.sum(1, keepdim=True) if units.zero else d
        if dlow is None:
            into["fusion"].copy_(torch.bmm(forward.h.transpose(1, 2), d))
            if forward.saved:
                dh = torch.bmm(d, forward.weights["fusion"].transpose(1, 2))
                units.table.encoder.backward(forward.effective, forward.saved, dh, into)
            return
        d_low = dlow.index_select(0, step.job)
        d_low = d_low.sum(1, keepdim=True) if units.zero else d_low
        into["lora_a"].copy_(torch.bmm(forward.h.transpose(1, 2), d_low))
        if forward.saved:
            dh = torch.bmm(d_low, forward.weights["lora_a"].transpose(1, 2))
            dh.baddbmm_(d, forward.effective["fusion"].transpose(1, 2))
            whole = {name: torch.empty_like(w) for name, w in forward.effective.items()}
            units.table.encoder.backward(forward.effective, forward.saved, dh, whole)
            for i in range(len(self.spec.widths)):
                down, up, dw = forward.weights[f"{i}.down"], forward.weights[f"{i}.up"], whole[f"{i}.weight"]
                into[f"{i}.down"].copy_(torch.bmm(dw, up.transpose(1, 2)))
                into[f"{i}.up"].copy_(torch.bmm(down.transpose(1, 2), dw))

    def _update(self, t: int, running: int, gradient: Tensor, steps: list[_Step]) -> None:
        """Pull, mask, clip over all blocks of a job together, and descend."""
        trained = np.flatnonzero(self.shared_steps[:running] > t)
        shared: Chosen = slice(0, running)
        if len(trained) < running:
            shared = torch.from_numpy(trained)
            gradient = gradient.index_select(0, shared)
        self.shared.complete(shared, gradient)
        for step in steps:
            step.units.complete(step.chosen, step.gradient)
        if self.local.clip:
            squares = self.loss.new_zeros(running)
            squares[shared] = gradient.square().sum(1)
            for step in steps:
                squares.index_add_(0, step.job, step.gradient.square().sum(1))
            factor = (self.local.clip / (squares.sqrt() + 1e-6)).clamp_(max=1.0).unsqueeze(1)
            gradient.mul_(factor[shared])
            for step in steps:
                step.gradient.mul_(factor[step.job])
        self.shared.descend(shared, gradient)
        for step in steps:
            step.units.descend(step.chosen, step.gradient)

    def _freeze(self, group: Units, ending: npt.NDArray[np.int64]) -> None:
        """Keep what blocks contribute whose weights will not change again this round."""
        for u in ending:
            one = torch.tensor([u])
            windows = torch.from_numpy(self.jobs[group.pairs[u][0]].windows)
            rows = group.offset[one].unsqueeze(1) if group.zero else (windows + group.offset[u]).unsqueeze(0)
            forward = group.contribute(one, group.flat[one], rows)
            parts = [forward.fused[0]] if forward.low is None else [forward.fused[0], forward.low[0]]
            both = torch.cat(parts, 1)
            if group.kept is None:
                group.kept = both.new_zeros(group.kept_rows, both.shape[1])
            group.kept[int(group.start[u]) : int(group.start[u]) + len(both)] = both

    def _add_frozen(self, group: Units, chosen: Tensor, positions: Tensor, z: Tensor, low: Tensor | None) -> None:
        assert group.kept is not None
        job = group.job[chosen]
        rows = group.start[chosen].unsqueeze(1)
        rows = rows if group.zero else rows + positions[job]
        both = group.gather(group.kept, rows)
        z.index_add_(0, job, both[..., : self.spec.fusion].expand(len(job), *z.shape[1:]))
        if low is not None:
            low.index_add_(0, job, both[..., self.spec.fusion :].expand(len(job), *low.shape[1:]))

    def _collect(self) -> list[Work]:
        deltas: list[dict[str, Vector]] = [{} for _ in self.jobs]
        steps: list[dict[str, int]] = [{} for _ in self.jobs]
        present: list[dict[str, int]] = [{} for _ in self.jobs]
        for group, there in zip(self.groups, self.taking_part, strict=True):
            rows = group.deltas()
            taken = (there & (group.steps[None, :] > np.arange(self.tmax)[:, None])).sum(0)
            counts = there.sum(0)
            for u, (j, m) in enumerate(group.pairs):
                present[j][m] = int(counts[u])
                if taken[u]:
                    deltas[j][m], steps[j][m] = rows[u], int(taken[u])
        rows = self.shared.deltas()
        works = []
        for j, job in enumerate(self.jobs):
            if self.shared_steps[j]:
                deltas[j][SHARED], steps[j][SHARED] = rows[j], int(self.shared_steps[j])
            works.append(
                Work(
                    deltas[j],
                    steps[j],
                    float(self.loss[j]) / max(job.total, 1),
                    present[j],
                    self.passes,
                    self.local.looks(len(job.owned)),
                    float(self.entropy[j]) / max(job.total - int(self.last_epoch[j]), 1),
                )
            )
        return works
