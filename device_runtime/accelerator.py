"""The processor that trains: the CPU or the GPU beside it, by configuration or by what is faster for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from device_runtime.profiler import Time

Wish = Literal["auto", "cpu", "cuda"]


def problem(wish: Wish) -> str:
    """Why training cannot be done where it is wished, and what to do; empty where it can."""
    if wish != "cuda":
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    why = "finds no GPU that it can use" if torch.version.cuda else "is a build without CUDA"
    return (
        f'accelerator = "cuda": torch {torch.__version__} {why}; install the torch that the board\'s maker builds '
        '(on a Jetson NVIDIA\'s), or set accelerator = "auto"'
    )


def candidates(wish: Wish) -> tuple[str, ...]:
    """The processors among which training may choose here: names of torch devices."""
    if wish != "auto":
        return (wish,)
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def exact() -> None:
    """Make the GPU round as the CPU does: convolutions in TF32 keep ten bits, and devices of a fleet would differ."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


def name(where: str) -> str:
    """What a person calls it: cpu, or cuda with the GPU's name."""
    if where == "cpu":
        return where
    import torch

    return f"{where}: {torch.cuda.get_device_name(where)}"


def faster(measured: Mapping[str, Mapping[str, Time]]) -> str:
    """Of processors and the times of their blocks, the one that takes a training step soonest; the first of equals."""
    return min(measured, key=lambda where: step_seconds(measured[where]))


def step_seconds(times: Mapping[str, Time]) -> float:
    """Seconds per window of a step that trains every block."""
    return sum(t.forward / max(1, t.encoded) + t.backward / max(1, t.trained) for t in times.values())
