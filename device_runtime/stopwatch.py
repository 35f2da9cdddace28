"""Seconds per block, measured while training.

Every stretch of a step is read off one clock: an encoder's forward pass, the fusion layer and head, the backward pass
through the fusion, each encoder's backward pass (a hook on its features marks where it begins) and the update. What
several blocks share, the backward pass through the fusion and the update, is divided by the cost model. On one CPU
thread the clock is that thread's CPU time, scaled to wall time at the end: under a CPU quota the wall clock would
charge the pauses to whichever block happened to run. On a GPU the stretches are between events in its stream.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from models.cost import BlockCost
from models.spec import SHARED

LATE = 2048  # stretches on a GPU that are left open before the oldest are read


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
    """Stretches of a run on the clock of the processor `where`; read `times` after `finish`."""

    def __init__(self, costs: Mapping[str, BlockCost], where: torch.device) -> None:
        self._costs = costs
        self._clock: _Clock = _Cuda() if where.type == "cuda" else _Cpu()
        self.times = {block: BlockTime() for block in costs}

    @contextmanager
    def forward(self, block: str, windows: int) -> Iterator[None]:
        begin = self._clock.mark()
        yield
        self._clock.spend(begin, self._clock.mark(), partial(self._ahead, block))
        self.times[block].encoded += windows

    @contextmanager
    def fusion(self, windows: int) -> Iterator[None]:
        with self.forward(SHARED, windows):
            yield

    @contextmanager
    def backward(self, active: Sequence[str], features: Mapping[str, Tensor], windows: int) -> Iterator[None]:
        marks: list[tuple[str, Any]] = []
        hooks = [
            h.register_hook(lambda _, m=m: marks.append((m, self._clock.mark())))  # type: ignore[no-untyped-call]
            for m, h in features.items()
            if h.requires_grad
        ]
        begin = self._clock.mark()
        yield
        end = self._clock.mark()
        for hook in hooks:
            hook.remove()
        self._clock.spend(begin, marks[0][1] if marks else end, partial(self._share, active, "fuse"))
        ends = [at for _, at in marks[1:]] + [end]
        for (m, at), until in zip(marks, ends, strict=False):
            self._clock.spend(at, until, partial(self._back, m))
        for b in active:
            self.times[b].trained += windows

    @contextmanager
    def update(self, active: Sequence[str]) -> Iterator[None]:
        begin = self._clock.mark()
        yield
        self._clock.spend(begin, self._clock.mark(), partial(self._share, active, "bytes"))

    def finish(self) -> None:
        """Wait until everything that was measured has been done."""
        self._clock.finish()

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

    def _ahead(self, block: str, seconds: float) -> None:
        self.times[block].forward += seconds

    def _back(self, block: str, seconds: float) -> None:
        self.times[block].backward += seconds

    def _share(self, active: Sequence[str], weight: Literal["fuse", "bytes"], seconds: float) -> None:
        """Divide among the blocks by what the cost model says of them."""
        whole = sum(getattr(self._costs[b], weight) for b in active)
        for b in active:
            self.times[b].backward += seconds * getattr(self._costs[b], weight) / whole


class _Clock(Protocol):
    """Takes marks and, at once or later, gives `take` the seconds between two of them."""

    def mark(self) -> Any: ...

    def spend(self, begin: Any, end: Any, take: Callable[[float], None]) -> None: ...

    def finish(self) -> None: ...


class _Cpu:
    """This thread's CPU time where it computes alone, else the wall clock."""

    def __init__(self) -> None:
        self.mark = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def spend(self, begin: float, end: float, take: Callable[[float], None]) -> None:
        take(end - begin)

    def finish(self) -> None: ...


class _Cuda:
    """Events on the GPU's own timeline. Waiting for each would leave it idle, so they are read long after."""

    def __init__(self) -> None:
        self._open: deque[tuple[torch.cuda.Event, torch.cuda.Event, Callable[[float], None]]] = deque()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def spend(self, begin: torch.cuda.Event, end: torch.cuda.Event, take: Callable[[float], None]) -> None:
        self._open.append((begin, end, take))
        if len(self._open) >= 2 * LATE:
            self._read(LATE)

    def finish(self) -> None:
        torch.cuda.synchronize()
        self._read(len(self._open))

    def _read(self, count: int) -> None:
        for _ in range(count):
            begin, end, take = self._open.popleft()
            end.synchronize()
            take(begin.elapsed_time(end) / 1000)
