"""Small models and devices that many tests share, and hypothesis strategies that draw them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from coordinator.work import Member, speed_from_flops
from device_runtime.sensing import Labelled
from models import BPolicy, InputSpec, Mode, ModelSpec

NAMES = ("torso", "arm", "leg", "ecg", "heart_rate", "wrist")


def spec(modalities: int = 3, mode: Mode = Mode.FULL, **changes: object) -> ModelSpec:
    """A model that trains in milliseconds: `modalities` inputs of 3 channels x 16 samples, 4 classes."""
    inputs = tuple(InputSpec(name, 3, 16) for name in NAMES[:modalities])
    small = {"widths": (4, 6), "bins": 2, "fusion": 8, "rank": 2, "classes": 4, "mode": mode}
    return ModelSpec(inputs=inputs, **{**small, **changes})  # type: ignore[arg-type]


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Any small model: modes, encoders with and without convolutions, adapters, policies for B."""
    inputs = tuple(
        InputSpec(name, draw(st.integers(1, 4)), draw(st.integers(12, 24))) for name in NAMES[: draw(st.integers(1, 4))]
    )
    return ModelSpec(
        inputs=inputs,
        classes=draw(st.integers(2, 5)),
        mode=draw(st.sampled_from(Mode)),
        widths=draw(st.sampled_from([(), (3,), (2, 4)])),
        kernel=3,
        bins=draw(st.integers(1, 2)),
        fusion=draw(st.integers(2, 6)),
        rank=draw(st.integers(1, 2)),
        encoder_rank=draw(st.integers(0, 2)),
        b_policy=draw(st.sampled_from(BPolicy)),
        seed=draw(st.integers(0, 3)),
    )


def member(
    of: ModelSpec, id: str = "d", owned: tuple[str, ...] | None = None, *, flops: float = 1e8, **more: object
) -> Member:
    """A device with 40 windows whose speed follows from `flops` per second."""
    return Member(id, owned or of.names, 40, speed_from_flops(of, flops), **more)  # type: ignore[arg-type]


class FixedWindows:
    """A device's senses that have everything from the start."""

    def __init__(self, x: dict[str, np.ndarray], y: np.ndarray) -> None:
        self._held = Labelled(x, y, np.arange(len(y)))
        self.modalities = {name: values.shape[1] for name, values in x.items()}
        self.count = len(y)

    def open(self, changed: Callable[[], None]) -> None:
        changed()

    def labelled(self) -> Labelled:
        return self._held

    def told(self) -> dict[str, Any]:
        return {}

    def annotate(self, label: object) -> None: ...

    def close(self) -> None: ...


def windows(
    of: ModelSpec, n: int, seed: int = 0, owned: tuple[str, ...] | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """n labelled windows whose classes differ in mean, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, of.classes, n)
    x = {}
    for i in of.inputs:
        if owned is None or i.name in owned:
            centers = np.random.default_rng(len(i.name)).standard_normal((of.classes, i.channels, 1))
            x[i.name] = (centers[y] + rng.standard_normal((n, i.channels, i.samples))).astype(np.float32)
    return x, y
