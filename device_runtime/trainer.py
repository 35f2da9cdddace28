"""Local training: what a device does with its windows between two rounds. Plain torch, one loop, one file.

At step t a block takes part if it has steps left (t < steps[block]) and its modality was not dropped. A block that
takes no part gets no gradient, so neither its weights nor its momentum change, and its features come from a cache.
Everything lives where the labels `y` do, on the CPU or on a GPU; a step never waits for the GPU.
The rule itself (sampling, dropout, momentum) is models.local's; the simulator follows the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from device_runtime.features import Features, ResidentFeatures
from device_runtime.progress import Progress, State
from device_runtime.stopwatch import BlockTime, Stopwatch
from models.contrast import supervised_contrast
from models.cost import block_costs
from models.local import Local, batches, hidden, kept, last_epoch
from models.network import Network, embed, encode, fuse
from models.partition import Vector, resting
from models.spec import SHARED, Mode


class TrainingError(Exception):
    """Training that cannot be done or gave no numbers; the text says which block and why."""


@dataclass(frozen=True)
class Trained:
    """What came out of a round: Delta = trained - base per block that took at least one step.

    steps     local steps taken per block; fewer than asked for where `partial`
    loss      mean cross-entropy over the steps
    seconds   wall seconds per block; `times` has them apart, per window, forward and backward
    wall      wall seconds of all of it
    computed  windows that went through each encoder
    busy      seconds of computing as the clock of the measurement saw it: CPU seconds on one thread
    entropy   mean entropy of the last epoch's predictions in nats, with `contrast` or `distil`; else 0
    """

    deltas: dict[str, Vector]
    steps: dict[str, int]
    loss: float
    seconds: dict[str, float]
    wall: float
    partial: bool
    times: dict[str, BlockTime] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0
    entropy: float = 0.0


def never() -> bool:
    return False


def nothing() -> float:
    return 0.0


def kind(made_of: object, local: Local, where: str) -> tuple[object, bool, str]:
    """What a frozen encoder's features depend on besides raw windows: `made_of`, the precision, the processor."""
    return made_of, local.double, where


def train(
    network: Network,
    x: Mapping[str, Tensor],
    y: Tensor,
    steps: Mapping[str, int],
    local: Local,
    *,
    device: str,
    round: int,
    stop: Callable[[], bool] = never,
    resident: ResidentFeatures | None = None,
    made_of: Mapping[str, object] | None = None,
    window_ids: npt.NDArray[np.int64] | None = None,
    progress: Progress | None = None,
    resume: State | None = None,
    joules: Callable[[], float] = nothing,
) -> Trained:
    """Train the blocks in `steps` for their number of local steps; the network holds the base and ends up trained.

    x          modality -> (N, channels, samples), normalised; what the model does not know is ignored
    y          (N,) class indices
    stop       asked before every step: True ends training there, with `partial` set
    resident   features of frozen encoders kept across rounds (lora without encoder adapters), told apart by
               `made_of` (modality -> its frozen weights and how its windows were normalised) and `window_ids`
    progress   where training is kept from time to time and when it is stopped; `resume` goes on from there
    joules     used for this round so far, to be kept beside it
    With `local.zero_fill` every modality of the model is present, absent ones as zeros. Raises TrainingError.
    """
    run = _Run(network, x, y, steps, local, device, round)
    if run.resident_encoders and resident is not None:
        ids = window_ids if window_ids is not None else np.arange(run.windows)
        run.cache = {m: resident.of(m, kind((made_of or {}).get(m), local, y.device.type), ids) for m in run.present}
    started, computed_before = time.perf_counter(), {m: f.computed for m, f in run.cache.items()}
    before = resume.seconds if resume else 0.0
    partial = False
    for t in range(run.restore(resume) if resume else 0, run.total):
        partial = stop()
        if progress and (partial or progress.due()):
            progress.save(run.state(t, before + time.perf_counter() - started, joules()))
        if partial:
            break
        run.step(t)
    run.watch.finish()
    wall = time.perf_counter() - started
    busy, times = run.watch.busy, run.watch.settle(wall)
    computed = {m: run.encoded[m] + run.cache[m].computed - computed_before.get(m, 0) for m in run.present}
    seconds = {b: times[b].forward + times[b].backward for b in times}
    wall += before
    return Trained(run.deltas(), run.taken(), run.loss(), seconds, wall, partial, times, computed, busy, run.entropy())


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        network: Network,
        x: Mapping[str, Tensor],
        y: Tensor,
        steps: Mapping[str, int],
        local: Local,
        device: str,
        round: int,
    ) -> None:
        self.network, self.spec, self.local = network, network.spec, local
        dtype = torch.float64 if local.double else torch.float32
        network.to(y.device, dtype)
        self.y, self.windows = y.long(), len(y)
        self.steps = {b: s for b, s in steps.items() if s > 0}
        self.total = max(self.steps.values(), default=0)
        self.x = {m: x[m].to(y.device, dtype) for m in self.spec.names if m in x}
        self.present = [m for m in self.spec.names if m in self.x or local.zero_fill]
        self._check()
        self.chosen = batches(local, device, round, self.windows, self.total)  # (steps, batch)
        self.rows = torch.from_numpy(self.chosen).to(y.device)  # the same, where the windows are
        self.kept = kept(local, device, round, self.total, self.present)  # (steps, present)
        self.parameters = {b: [p.detach() for p in network.parameters_of(b)] for b in self.steps}
        self.base = {b: [p.clone() for p in self.parameters[b]] for b in self.steps}
        self.momentum = {b: [torch.zeros_like(p) for p in self.parameters[b]] for b in self.steps}
        self.resident_encoders = self.spec.mode is Mode.LORA and not self.spec.encoder_rank
        self.cache = {m: Features() for m in self.present}
        for cache in self.cache.values():
            cache.align(np.arange(self.windows))
        self.encoded = dict.fromkeys(self.present, 0)
        self.done = dict.fromkeys(self.steps, 0)
        self.losses, self.seen = torch.zeros((), dtype=dtype, device=y.device), 0
        self.rests = resting(self.spec, round)
        self.hidden = hidden(local, device, round, [m for m in self.present if m in self.x])
        self.last_epoch = last_epoch(local, self.windows, self.total)
        self.entropies: list[Tensor] = []
        self.others: Tensor | None = None  # (classes,) those that no window is of
        if local.own_classes:
            self.others = torch.ones(self.spec.classes, dtype=torch.bool, device=y.device)
            self.others[self.y] = False
        self.watch = Stopwatch(block_costs(self.spec), y.device)
        # Detached twins share storage with the parameters but record no graph: a frozen block costs no backward pass.
        self.live = dict(network.named_parameters())
        self.still = {name: p.detach() for name, p in self.live.items()}
        self.names = {b: [t.name for t in network.cut.trainable[b]] for b in self.steps}
        # The round's base by name, for rules that follow its predictions; frozen tensors are the same there.
        self.start = self.still | {n: p for b in self.steps for n, p in zip(self.names[b], self.base[b], strict=True)}

    def _check(self) -> None:
        if not self.present:
            raise TrainingError(f"none of the model's modalities {list(self.spec.names)} is present")
        if not self.windows:
            raise TrainingError("there are no labelled windows to train on")
        strangers = [b for b in self.steps if b != SHARED and b not in self.present]
        if strangers:
            raise TrainingError(f"blocks {strangers} cannot be trained: this device has {self.present}")
        for m, values in self.x.items():
            i = self.spec.input(m)
            if values.shape != (self.windows, i.channels, i.samples):
                expected = (self.windows, i.channels, i.samples)
                raise TrainingError(f"modality {m}: windows of shape {tuple(values.shape)}, the model takes {expected}")

    def step(self, t: int) -> None:
        here = [m for n, m in enumerate(self.present) if self.kept[t, n]]
        active = [b for b in self.steps if t < self.steps[b] and (b == SHARED or b in here)]
        if not active:
            return
        tensors = self.still | {name: self.live[name] for b in active for name in self.names[b]}
        rows = self.rows[t]
        features = {m: self._features(m, t, tensors, m in active) for m in here}
        with self.watch.fusion(len(rows)):
            scores = fuse(self.spec, tensors, features)
            if self.others is not None:
                scores = scores.masked_fill(self.others, 0.0)
            loss = F.cross_entropy(scores, self.y[rows])
        whole = loss
        if self.hidden:
            whole = whole + self.local.contrast * self._contrast(t, tensors, features, active)
        if self.local.distil:
            whole = whole + self.local.distil * self._distil(rows, here, scores)
        if (self.local.contrast or self.local.distil) and t >= self.last_epoch:
            self.entropies.append(torch.special.entr(scores.detach().softmax(1)).sum(1).mean())
        names = [name for b in active for name in self.names[b]]
        with self.watch.backward(active, features, len(rows)):
            flat = torch.autograd.grad(whole, [self.live[name] for name in names])
        if self.rests:
            flat = tuple(g.zero_() if name.startswith(self.rests) else g for name, g in zip(names, flat, strict=True))
        with self.watch.update(active):
            self._descend(active, flat)
        self.losses += loss.detach()
        self.seen += 1
        for b in active:
            self.done[b] += 1

    def _contrast(self, t: int, tensors: dict[str, Tensor], first: Mapping[str, Tensor], active: list[str]) -> Tensor:
        """Between the step's windows and the view of them that hides some modalities, which is run on its own."""
        rows, second = self.rows[t], {}
        for m in first:
            if m in self.hidden:
                second[m] = self._encoded(m, tensors if m in active else self.still, self._zeros(m, len(rows)))
            else:
                second[m] = self._features(m, t, tensors, m in active)
        with self.watch.fusion(len(rows)):
            one, other = (embed(self.spec, tensors, features) for features in (first, second))
            return supervised_contrast(one, other, self.y[rows], self.local.temperature)

    @torch.no_grad()
    def _teacher(self, rows: Tensor, here: list[str]) -> Tensor:
        features = {m: self._encoded(m, self.start, self._rows(m, rows)) for m in here}
        return fuse(self.spec, self.start, features)

    def _distil(self, rows: Tensor, here: list[str], scores: Tensor) -> Tensor:
        """KL(the base's prediction || own), mean over the windows."""
        teacher = self._teacher(rows, here).log_softmax(1)
        return F.kl_div(scores.log_softmax(1), teacher, reduction="batchmean", log_target=True)

    def _encoded(self, m: str, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        with self.watch.forward(m, len(x)):
            self.encoded[m] += len(x)
            return encode(self.spec, m, tensors, x)

    def _features(self, m: str, t: int, tensors: dict[str, Tensor], active: bool) -> Tensor:
        """(B, d_m) of step t: through the graph while the encoder learns, else from the cache."""
        rows = self.rows[t]
        frozen = self.resident_encoders or not active
        if not (frozen and self.local.cache and m in self.x):
            return self._encoded(m, self.still if frozen else tensors, self._rows(m, rows))
        cache = self.cache[m]
        missing = cache.missing(self.chosen[t])
        if len(missing):
            with self.watch.forward(m, len(missing)):
                cache.fill(missing, self.x[m], lambda x: encode(self.spec, m, self.still, x))
        with self.watch.fusion(0):  # reading the cache belongs to the step, not to the encoder
            return cache.rows(rows)

    def _rows(self, m: str, rows: Tensor) -> Tensor:
        if m in self.x:
            return self.x[m][rows]
        return self._zeros(m, len(rows))

    def _zeros(self, m: str, count: int) -> Tensor:
        i = self.spec.input(m)
        return self.losses.new_zeros((count, i.channels, i.samples))

    @torch.no_grad()
    def _descend(self, active: list[str], flat: tuple[Tensor, ...]) -> None:
        """Heavy ball on the active blocks: v = beta v + g, w = w - lr v."""
        grads = list(flat)
        weights = [p for b in active for p in self.parameters[b]]
        velocity = [v for b in active for v in self.momentum[b]]
        if self.local.prox:
            base = [p for b in active for p in self.base[b]]
            torch._foreach_add_(grads, torch._foreach_sub(weights, base), alpha=self.local.prox)
        if self.local.clip:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, torch.clamp(self.local.clip / (norm + 1e-6), max=1.0))
        torch._foreach_mul_(velocity, self.local.momentum)
        torch._foreach_add_(velocity, grads)
        torch._foreach_add_(weights, velocity, alpha=-self.local.lr)

    # -- resuming --------------------------------------------------------------------------------

    def state(self, step: int, seconds: float, joules: float) -> State:
        """Everything that the steps from `step` on depend on, besides windows and base."""
        weights = {b: _flat(tensors) for b, tensors in self.parameters.items()}
        momentum = {b: _flat(tensors) for b, tensors in self.momentum.items()}
        return State(step, weights, momentum, dict(self.done), float(self.losses), self.seen, seconds, joules)

    @torch.no_grad()
    def restore(self, state: State) -> int:
        """Go back to a state; the step to go on with."""
        for mine, held in ((self.parameters, state.weights), (self.momentum, state.momentum)):
            for b, tensors in mine.items():
                whole, at = torch.from_numpy(held[b].copy()).to(self.losses), 0
                for p in tensors:
                    p.copy_(whole[at : at + p.numel()].view_as(p))
                    at += p.numel()
        self.done = {b: state.done.get(b, 0) for b in self.steps}
        self.losses.fill_(state.loss)
        self.seen = state.seen
        return state.step

    # -- results ---------------------------------------------------------------------------------

    def taken(self) -> dict[str, int]:
        """Steps per block that took at least one."""
        return {b: s for b, s in self.done.items() if s}

    @torch.no_grad()
    def deltas(self) -> dict[str, Vector]:
        found = {}
        for b in self.taken():
            parts = [(p - q).reshape(-1) for p, q in zip(self.parameters[b], self.base[b], strict=True)]
            delta = torch.cat(parts)
            if not bool(torch.isfinite(delta).all()):
                raise TrainingError(f"block {b}: training gave values that are not finite; lower the learning rate")
            found[b] = delta.cpu().numpy()
        return found

    def loss(self) -> float:
        return float(self.losses) / max(1, self.seen)

    def entropy(self) -> float:
        return float(torch.stack(self.entropies).mean()) if self.entropies else 0.0


def _flat(tensors: list[Tensor]) -> Vector:
    vector: Vector = torch.cat([t.reshape(-1) for t in tensors]).cpu().numpy()
    return vector
