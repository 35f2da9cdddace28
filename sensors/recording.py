"""What is sensed: modalities, recordings of them, and the data sets that hold recordings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[Any]

UNLABELLED = -1


@dataclass(frozen=True)
class Modality:
    """A sensor as the model knows it; several channels that are owned, lost and sampled together."""

    name: str  # a block's name: a-z, 0-9, _
    channels: tuple[str, ...]
    unit: str
    rate_hz: float


@dataclass(frozen=True)
class Recording:
    """One uninterrupted recording of one subject on one clock.

    labels     (T,) class index per sample, UNLABELLED where there is none
    streams    modality -> (T, channels); NaN where a sample is missing. An absent sensor is not in the mapping
    segment    position of this stretch in time among the subject's recordings of the same activity, where the data
               set is cut into numbered files (DSADS); -1 otherwise
    """

    subject: str
    rate_hz: float
    labels: Ints
    streams: dict[str, Floats]
    segment: int = -1

    @property
    def seconds(self) -> float:
        return len(self.labels) / self.rate_hz


class DataError(Exception):
    """A recording that cannot be read: which file, which row, what was expected and what to do."""

    def __init__(self, file: object, expected: str, row: int | None = None) -> None:
        super().__init__(f"{file}{'' if row is None else f', row {row}'}: {expected}")
        self.file, self.row, self.expected = file, row, expected

    def __reduce__(self) -> tuple[type[DataError], tuple[object, str, int | None]]:
        return type(self), (self.file, self.expected, self.row)  # as its words alone it would not come through a pipe


class DataSet(Protocol):
    """A set of recordings. Reading is lazy: `recordings` may be called again and holds one recording at a time."""

    name: str
    modalities: tuple[Modality, ...]
    activities: tuple[str, ...]  # class index -> name
    rate_hz: float
    window_s: float  # the field's usual window for this set
    overlap: float  # fraction shared by neighbouring windows, 0 to < 1

    def subjects(self) -> tuple[str, ...]:
        """Subjects at hand, in a fixed order."""

    def recordings(self, subject: str) -> Iterator[Recording]:
        """The subject's recordings in time order. Raises DataError."""
