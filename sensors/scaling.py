"""Normalisation of every channel to zero mean and unit width, learned from training windows only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sensors.recording import Floats
from sensors.windows import Windows

NARROWEST = 1e-6  # a channel that never changes is centred and otherwise left alone


@dataclass(frozen=True)
class Sums:
    """What a fleet's normalisation needs of one device's windows of one modality; they add up.

    count      samples per channel
    total      (channels,) float64, sum of the values
    squares    (channels,) float64, sum of their squares
    """

    count: int
    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)


def sums(windows: Windows) -> dict[str, Sums]:
    """Per modality, over all windows and samples."""
    found = {}
    for name, x in windows.x.items():
        wide = x.astype(np.float64)
        found[name] = Sums(x.shape[0] * x.shape[2], wide.sum(axis=(0, 2)), np.einsum("ncs,ncs->c", wide, wide))
    return found


def merge(parts: Iterable[Mapping[str, Sums]]) -> dict[str, Sums]:
    """Modality by modality over the devices that own it."""
    merged: dict[str, Sums] = {}
    for part in parts:
        for name, own in part.items():
            merged[name] = merged[name] + own if name in merged else own
    return merged


@dataclass(frozen=True)
class Scaling:
    """(value - center) / width, per modality and channel; both (channels,) float32."""

    center: dict[str, Floats]
    width: dict[str, Floats]

    @classmethod
    def of(cls, totals: Mapping[str, Sums]) -> Scaling:
        """Mean and standard deviation from sums; a modality without samples is left out."""
        center, width = {}, {}
        for name, own in totals.items():
            if own.count:
                mean = own.total / own.count
                spread = np.sqrt(np.maximum(own.squares / own.count - mean**2, 0.0))
                center[name] = mean.astype(np.float32)
                width[name] = np.where(spread > NARROWEST, spread, 1.0).astype(np.float32)
        return cls(center, width)

    def apply(self, windows: Windows) -> Windows:
        """The same windows, scaled. KeyError for a modality that this scaling does not know."""
        x = {}
        for name, values in windows.x.items():
            x[name] = (values - self.center[name][:, None]) / self.width[name][:, None]
        return Windows(x, windows.y, windows.subject, windows.position, windows.subjects, windows.stop, windows.dropped)
