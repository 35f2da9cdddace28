"""How fast the laboratory trains many devices at once, against a plain loop over the devices in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from models.local import Local, batches
from models.network import Network
from models.partition import Vector, initial
from models.spec import SHARED, InputSpec, Mode, ModelSpec
from tools.lab.engine import Engine, Job

MLP = ModelSpec((InputSpec("acc", 3, 16), InputSpec("gyro", 3, 16)), 10, widths=(), fusion=71)
CONV = ModelSpec(tuple(InputSpec(f"unit{n}", 9, 125) for n in range(5)), 19)
LORA = ModelSpec(CONV.inputs, 19, mode=Mode.LORA)

# Name, model, devices, windows of each, batch, epochs, how many times faster is promised.
CASES = (
    ("20 devices, MLP of 7.6k parameters", MLP, 20, 256, 32, 1, 5.0),
    ("100 devices, MLP of 7.6k parameters", MLP, 100, 256, 32, 1, 4.0),
    ("1,000 devices, lora, features kept", LORA, 1000, 32, 16, 1, 20.0),
    ("24 devices, convolutional preset", CONV, 24, 64, 16, 2, 1.0),
)
REPEATS = 5  # twice as many where a round is short


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, rival (name, value), promise, ok."""
    rows: list[dict[str, Any]] = []
    for name, spec, devices, windows, batch, epochs, promise in CASES:
        before = psutil.Process().memory_info().rss
        ours, loop, peak = compare(spec, devices, windows, batch, epochs)
        rows.append(
            {
                "name": f"lab: a round of {name}",
                "value": round(loop / ours, 2),
                "unit": "x faster than a loop over the devices",
                "rival": {"name": f"stacked {ours * 1e3:.0f} ms, plain PyTorch loop", "value": f"{loop * 1e3:.0f} ms"},
                "promise": promise,
                "ok": loop / ours >= promise,
            }
        )
        if devices == 20:
            used = peak / 2**20
            rows.append(
                {
                    "name": f"lab: peak memory with {name}",
                    "value": round(used),
                    "unit": "MiB resident",
                    "rival": {"name": "before", "value": f"{before / 2**20:.0f} MiB"},
                    "promise": 600,
                    "ok": used < 600,
                }
            )
    return rows


def compare(spec: ModelSpec, devices: int, windows: int, batch: int, epochs: int) -> tuple[float, float, int]:
    """(seconds of a round stacked, seconds of the loop, resident bytes afterwards)."""
    rng = np.random.default_rng(0)
    kinds = min(devices, 100)  # beyond that, devices share windows: the work is the same, the memory is not
    n = kinds * windows
    x = {i.name: rng.standard_normal((n, i.channels, i.samples)).astype(np.float32) for i in spec.inputs}
    y = rng.integers(0, spec.classes, n)
    trainable, frozen = initial(spec)
    local = Local(batch=batch)
    steps = dict.fromkeys((*spec.names, SHARED), epochs * windows // batch)
    jobs = []
    for d in range(devices):
        rows = np.arange(d % kinds * windows, (d % kinds + 1) * windows)
        jobs.append(Job(f"d{d}", 1, rows, spec.names, steps, trainable, local))
    engine = Engine(spec, x, y, frozen)
    few = jobs if devices <= 100 else jobs[:50]  # the loop's time is proportional to its devices
    loop = Loop(spec, x, y, frozen)
    ours, theirs = _best(
        lambda: engine.train(jobs), lambda: [loop.train(job) for job in few], 2 * REPEATS if devices <= 20 else REPEATS
    )
    return ours, theirs * devices / len(few), psutil.Process().memory_info().rss


class Loop:
    """One device after the other as one would write it: torch modules, autograd, torch.optim."""

    def __init__(self, spec: ModelSpec, x: dict[str, Vector], y: Vector, frozen: dict[str, Vector]) -> None:
        self.network = Network(spec)
        for block, vector in frozen.items():
            self.network.load(block, vector, base=True)
        self.x = {m: torch.from_numpy(values) for m, values in x.items()}
        self.y = torch.from_numpy(y)

    def train(self, job: Job) -> dict[str, Vector]:
        for block, vector in job.base.items():
            self.network.load(block, vector)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=job.local.lr, momentum=job.local.momentum)
        for rows in self._rows(job):
            optimiser.zero_grad()
            scores = self.network({m: self.x[m][rows] for m in job.owned})
            torch.nn.functional.cross_entropy(scores, self.y[rows]).backward()
            optimiser.step()
        return {block: self.network.read(block) - job.base[block] for block in job.steps}

    def _rows(self, job: Job) -> list[Tensor]:
        drawn = batches(job.local, job.device, job.round, len(job.windows), job.total)
        return [torch.from_numpy(job.windows[step]) for step in drawn]


def _best(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds of either in its best run; they take turns, so that a busy machine disturbs both alike."""
    best = [float("inf"), float("inf")]
    for turn in range(repeats + 1):
        for n, call in enumerate((first, second)):
            began = time.perf_counter()
            call()
            if turn:  # the first turn warms up
                best[n] = min(best[n], time.perf_counter() - began)
    return best[0], best[1]


if __name__ == "__main__":
    for row in bench():
        beside = " ".join(map(str, row["rival"].values()))
        print(f"{row['name']}: {row['value']} {row['unit']} ({beside}; promised {row['promise']}) {row['ok']}")
