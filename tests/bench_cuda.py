"""Milliseconds of a training step on the GPU beside one thread of the CPU, for the models that this repository uses.

`python -m tests.bench_cuda` prints the rows; `bench()` is what `make bench` collects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from device_runtime import accelerator
from device_runtime.trainer import train
from models.local import Local
from models.network import Network
from models.spec import SHARED, InputSpec, Mode, ModelSpec
from tests.bench import cells

UNITS = tuple(InputSpec(name, 9, 125) for name in ("torso", "right_arm", "left_arm", "right_leg", "left_leg"))
CONV = ModelSpec(UNITS, classes=19)
PRESETS = {
    "5 body units, full": CONV,
    "5 body units, lora": replace(CONV, mode=Mode.LORA),
    "1 body unit, full": replace(CONV, inputs=UNITS[:1]),
    "15 sensors, full": replace(CONV, inputs=tuple(InputSpec(f"sensor{n}", 3, 125) for n in range(15))),
    "5 body units, full, eight times as wide": replace(CONV, widths=tuple(8 * w for w in CONV.widths)),
}
BATCHES = (16, 256)
STEPS = 60  # of a run at most
PATIENCE = 0.5  # seconds of a run, where a step is slow
TURNS = 3


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, rival (name, value); nothing is promised, the faster one is taken at birth."""
    if not torch.cuda.is_available():
        return [{"name": "training step on a GPU", "skipped": "torch finds no GPU that it can use"}]
    torch.set_num_threads(1)
    accelerator.exact()
    return [_row(name, spec, batch) for name, spec in PRESETS.items() for batch in BATCHES]


def _row(name: str, spec: ModelSpec, batch: int) -> dict[str, Any]:
    gpu, cpu = (step_ms(spec, batch, where) for where in ("cuda", "cpu"))
    return {
        "name": f"training step, {name}, batch {batch}",
        "value": round(gpu, 3),
        "unit": f"ms on {torch.cuda.get_device_name()}",
        "rival": {"name": "one CPU thread", "value": f"{cpu:.3f} ms"},
        "promise": None,
        "ok": True,
    }


def step_ms(spec: ModelSpec, batch: int, where: str) -> float:
    """Milliseconds of a step that trains every block, as the trainer itself does it; the best of TURNS runs."""
    draw = torch.Generator().manual_seed(0)
    x = {i.name: torch.randn((2 * batch, i.channels, i.samples), generator=draw).to(where) for i in spec.inputs}
    y = torch.randint(spec.classes, (2 * batch,), generator=draw).to(where)
    network, local = Network(spec), Local(lr=1e-6, batch=batch)

    def seconds(steps: int) -> float:
        """Of one step; training waits for the GPU before it says that it is done."""
        everything = dict.fromkeys((*spec.names, SHARED), steps)
        return train(network, x, y, everything, local, device="bench", round=0).wall / steps

    seconds(2)  # warms up
    steps = max(2, min(STEPS, int(PATIENCE / seconds(2))))
    return 1000 * min(seconds(steps) for _ in range(TURNS))


if __name__ == "__main__":
    for row in bench():
        print(*cells(row), sep="  ", flush=True)
