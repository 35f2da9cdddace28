"""Seconds per block, measured while training.

Every stretch of a step is read off one clock: an encoder's forward pass, the fusion layer and head, the backward pass
through the fusion, each encoder's backward pass (a hook on its features marks where it begins) and the update. What
several blocks share, the backward pass through the fusion and the update, is divided by the cost model. On one CPU
thread the clock is that thread's CPU time, scaled to wall time at the end: under a CPU quota the wall clock would
charge the pauses to whichever block happened to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cost import BlockCost
from models.spec import SHARED


@dataclass
class BlockTime:
    """Seconds of one block over a run and the windows they were spent on.

    forward    of a modality: its encoder, for `encoded` windows; of the shared block: fusion and head of all that was
               there, for `encoded` windows
    backward   through the block's tensors, its update included, for `trained` windows
    """

    forward: float = 0.0
    backward: float = 0.0
    encoded: int = 0
    trained: int = 0


class Stopwatch:
    def __init__(self, costs: Mapping[str, BlockCost], *, cpu: bool) -> None:
        self._costs = costs
        self._clock = _clock(cpu)
        self.times = {block: BlockTime() for block in costs}
        self._active: Sequence[str] = ()

    @contextmanager
    def forward(self, block: str, windows: int) -> Iterator[None]:
        begin = self._clock()
        yield
        self.times[block].forward += self._clock() - begin
        self.times[block].encoded += windows

    @contextmanager
    def fusion(self, windows: int) -> Iterator[None]:
        begin = self._clock()
        yield
        self.times[SHARED].forward += self._clock() - begin
        self.times[SHARED].encoded += windows

    @contextmanager
    def backward(self, active: Sequence[str], features: Mapping[str, Tensor], windows: int) -> Iterator[None]:
        marks: list[tuple[str, float]] = []
        hooks = [
            h.register_hook(lambda _, m=m: marks.append((m, self._clock())))  # type: ignore[no-untyped-call]
            for m, h in features.items()
            if h.requires_grad
        ]
        begin = self._clock()
        yield
        end = self._clock()
        for hook in hooks:
            hook.remove()
        self._share((marks[0][1] if marks else end) - begin, active, lambda c: c.fuse)
        ends = [at for _, at in marks[1:]] + [end]
        for (m, at), until in zip(marks, ends, strict=False):
            self.times[m].backward += until - at
        for b in active:
            self.times[b].trained += windows

    @contextmanager
    def update(self, active: Sequence[str]) -> Iterator[None]:
        begin = self._clock()
        yield
        self._share(self._clock() - begin, active, lambda c: c.bytes)

    @property
    def busy(self) -> float:
        """Seconds on the clock so far: CPU time where that is what it reads."""
        return sum(t.forward + t.backward for t in self.times.values())

    def settle(self, wall: float) -> dict[str, BlockTime]:
        """Times of the blocks that did anything, scaled so that together they are `wall` seconds."""
        scale = wall / self.busy if self.busy > 0 else 0.0
        for t in self.times.values():
            t.forward, t.backward = t.forward * scale, t.backward * scale
        return {b: t for b, t in self.times.items() if t.encoded or t.trained}

    def _share(self, seconds: float, active: Sequence[str], weight: Callable[[BlockCost], float]) -> None:
        whole = sum(weight(self._costs[b]) for b in active)
        for b in active:
            self.times[b].backward += seconds * weight(self._costs[b]) / whole


def _clock(cpu: bool) -> Callable[[], float]:
    if not cpu:
        return _synchronised
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
