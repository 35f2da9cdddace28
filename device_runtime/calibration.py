"""Measuring a model's blocks on this device before the first round, with the trainer itself on random windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from device_runtime.stopwatch import BlockTime
from device_runtime.trainer import train
from models.local import Local
from models.network import Network
from models.spec import SHARED, ModelSpec

WINDOWS, STEPS = 32, 4


def measure(
    spec: ModelSpec,
    owned: Sequence[str],
    *,
    where: str = "cpu",
    share: float = 1.0,
    seconds: float = 0.1,
    patience: float = 3.0,
    batch: int = 16,
    stop: Callable[[], bool],
) -> dict[str, BlockTime]:
    """Times of every owned block and the shared one, from `seconds` of computing, `patience` seconds at most.

    At birth sensors start and blocks arrive, so wall time would blame training for them: it is computing time, divided
    by the share of a core that this process may use. A GPU's time is taken as it passes.
    """
    torch.set_num_threads(1)
    network, draw = Network(spec), torch.Generator().manual_seed(0)
    x = {
        m: torch.randn((WINDOWS, spec.input(m).channels, spec.input(m).samples), generator=draw).to(where)
        for m in owned
    }
    y = torch.randint(spec.classes, (WINDOWS,), generator=draw).to(where)
    # A tiny rate: only the time matters, and weights that run away would cost other arithmetic.
    local, steps = Local(lr=1e-6, batch=batch), dict.fromkeys((*owned, SHARED), STEPS)
    train(network, x, y, steps, local, device="profile", round=0)  # warms allocator and caches
    sums = {b: BlockTime() for b in (*owned, SHARED)}
    begin, busy, n = time.monotonic(), 0.0, 0
    while busy < seconds and time.monotonic() - begin < patience and not stop():
        n += 1
        run = train(network, x, y, steps, local, device="profile", round=n)
        busy += run.busy
        scale = run.busy / run.wall / share if where == "cpu" else 1.0
        for block, t in run.times.items():
            s = sums[block]
            s.forward, s.backward = s.forward + t.forward * scale, s.backward + t.backward * scale
            s.encoded, s.trained = s.encoded + t.encoded, s.trained + t.trained
    return sums
