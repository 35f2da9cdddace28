"""What inference costs: our joined graph against a fixed ONNX export of the same subset and against torch eager.

`python -m tests.bench_inference` prints the table; `bench()` is what `make bench` collects. One thread each.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from device_runtime.inference import Engine
from models.export import export, loaded, whole
from models.partition import Vector, initial
from models.spec import SHARED, InputSpec, Mode, ModelSpec

# Five body units of acceleration, turn rate and magnetic field, 5 s at 25 Hz.
UNITS = tuple(InputSpec(name, 9, 125) for name in ("torso", "right_arm", "left_arm", "right_leg", "left_leg"))
MODES = (Mode.LORA, Mode.FULL)
RUNS = 3000
SWAPS = 200
LATENCY = 1.10  # of the fixed model's, at most
FASTER = 2.5  # than torch eager, at least
SWAP_MS = 1.0
ERROR = 1e-5


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, rival (name, value), promise, ok."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        spec = ModelSpec(UNITS, classes=19, mode=mode)
        start, base = initial(spec)
        blocks = _moved(start)
        with tempfile.TemporaryDirectory() as folder:
            kit = export(spec, blocks, base, Path(folder) / "kit")
        network = loaded(spec, blocks, base)
        for present in dict.fromkeys((spec.names, spec.names[:1])):
            rows += _latency(Engine(kit), network, present, f"{mode.value}, {len(present)} of {len(UNITS)} modalities")
        rows += _swaps(Engine(kit), blocks, mode)
    return rows


def _latency(engine: Engine, network: Any, present: tuple[str, ...], what: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    x = {m: rng.standard_normal((1, 9, 125)).astype(np.float32) for m in present}
    fixed = _fixed(whole(network, present).SerializeToString())
    tensors = {m: torch.from_numpy(values) for m, values in x.items()}
    with torch.inference_mode():
        expected = torch.softmax(network(tensors), -1).numpy()
        error = float(np.abs(engine.predict(x).probabilities - expected).max())
        session, options = engine.ready(present)
        ours, rival, eager = _medians(
            lambda: session.run(["scores"], x, options),
            lambda: fixed.run(["scores"], x, None),
            lambda: network(tensors),
        )
    whole_call = _medians(lambda: engine.predict(x))[0]
    return [
        _row(
            f"latency of a window, {what}",
            ours,
            "ms",
            "fixed ONNX model",
            rival,
            f"<= {LATENCY:.2f} x",
            ours <= LATENCY * rival,
        ),
        _row(
            f"latency of a window, {what}",
            ours,
            "ms",
            "torch eager",
            eager,
            f">= {FASTER} x faster",
            eager >= FASTER * ours,
        ),
        _row(f"the same with checks, {what}", whole_call, "ms", "torch eager", eager, "", True),
        _row(f"largest difference to torch, {what}", error, "", "torch eager", 0.0, f"<= {ERROR:g}", error <= ERROR),
    ]


def _swaps(engine: Engine, blocks: dict[str, Vector], mode: Mode) -> list[dict[str, Any]]:
    """How long a swap takes, and by how much it can delay a prediction."""
    rng = np.random.default_rng(0)
    x = {i.name: rng.standard_normal((1, 9, 125)).astype(np.float32) for i in UNITS}
    engine.predict(x)
    other = Engine(engine.kit)
    built = time.perf_counter()
    other.ready(engine.kit.spec.names)
    built = (time.perf_counter() - built) * 1e3
    whole_swaps, pauses = [], []
    for version in range(SWAPS if mode is Mode.LORA else SWAPS // 10):
        began = time.perf_counter()
        engine.swap(blocks, dict.fromkeys((*engine.kit.spec.names, SHARED), version), wait=True)
        whole_swaps.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        engine.roll_back()  # the same change of a pointer
        pauses.append((time.perf_counter() - began) * 1e3)
    swap, pause = statistics.median(whole_swaps), max(pauses)
    rows = [
        _row(
            f"pause of a swap (longest of {len(pauses)}), {mode.value}",
            pause,
            "ms",
            "new session",
            built,
            f"<= {SWAP_MS:g} ms",
            pause <= SWAP_MS,
        )
    ]
    promise = f"<= {SWAP_MS:g} ms" if mode is Mode.LORA else "in the background"
    rows.append(
        _row(
            f"new version ready, {mode.value}",
            swap,
            "ms",
            "new session",
            built,
            promise,
            mode is Mode.FULL or swap <= SWAP_MS,
        )
    )
    return rows


def _fixed(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _medians(*runs: Callable[[], object]) -> list[float]:
    """Median milliseconds of each, taken in turn in blocks so that a busy moment hits all alike."""
    times: list[list[float]] = [[] for _ in runs]
    for block in range(31):
        for run, taken in zip(runs, times, strict=True):
            for _ in range(max(1, RUNS // 30)):
                began = time.perf_counter()
                run()
                if block:  # the first block warms up
                    taken.append(time.perf_counter() - began)
    return [statistics.median(taken) * 1e3 for taken in times]


def _moved(vectors: dict[str, Vector]) -> dict[str, Vector]:
    rng = np.random.default_rng(1)
    return {b: (v + 0.05 * rng.standard_normal(v.shape)).astype(np.float32) for b, v in vectors.items()}


def _row(name: str, value: float, unit: str, rival: str, rival_value: float, promise: str, ok: bool) -> dict[str, Any]:
    rival_pair = {"name": rival, "value": round(rival_value, 4)}
    return {"name": name, "value": round(value, 9), "unit": unit, "rival": rival_pair, "promise": promise, "ok": ok}


def main() -> None:
    for row in bench():
        rival = row["rival"]
        measured = f"{row['value']:.4g} {row['unit']}; {rival['name']} {rival['value']:.4g}; {row['promise']}"
        print("ok  " if row["ok"] else "MISS", f"{row['name']}: {measured}")


if __name__ == "__main__":
    main()
