"""Robust centres of a cohort's changes to one block: what a minority of bad devices cannot carry away.

All work on the step-normalised changes g_i = Delta_i / a_i and in bounded memory: a block is cut into ranges of
coordinates, and of each range all devices' values are read from the journal whenever needed. Sample counts are
not used as weights: they are the devices' own word.

    median         per coordinate (Yin et al., arXiv 1803.01498): any minority, at the price of a biased centre
    trimmed mean   the same, dropping a share of the values at either end
    Krum           the device closest to its neighbours (Blanchard et al., NeurIPS 2017), or the mean of several
    clipping       every norm cut to a multiple of the cohort's median norm, then the mean
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from coordinator.aggregation import Divergence, Folded
from models.partition import Vector

Doubles = npt.NDArray[np.float64]
MEMORY = 64 * 1024 * 1024  # bytes of values held at a time

Read = Callable[[int, int], Iterable[Vector]]
"""`read(start, stop)` gives coordinates start:stop of every device's vector, in the same order at every call."""


class Rule(str, Enum):
    """How a cohort's changes become one."""

    MEDIAN = "median"
    TRIMMED = "trimmed"
    KRUM = "krum"
    CLIPPED = "clipped"


def ranges(size: int, count: int, memory: int = MEMORY) -> Iterator[tuple[int, int]]:
    """Coordinate ranges of a block of which `count` devices' values fit `memory` as float64, sorting included."""
    width = max(1, memory // (2 * 8 * max(1, count)))
    for start in range(0, size, width):
        yield start, min(size, start + width)


def _stacked(read: Read, start: int, stop: int) -> Doubles:
    """(devices, stop - start) float64."""
    return np.stack([np.asarray(vector, np.float64) for vector in read(start, stop)])


def coordinate_median(read: Read, size: int, count: int, *, memory: int = MEMORY) -> Doubles:
    """Median of every coordinate; the mean of the middle two for an even number of devices."""
    centre = np.empty(size)
    for start, stop in ranges(size, count, memory):
        centre[start:stop] = np.median(_stacked(read, start, stop), axis=0, overwrite_input=True)
    return centre


def trimmed_mean(read: Read, size: int, count: int, share: float, *, memory: int = MEMORY) -> Doubles:
    """Mean of every coordinate without its floor(share * count) smallest and as many largest values.

    ValueError unless 0 <= share < 0.5: above that nothing is left.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"a trimmed mean drops a share of 0 to below 0.5 at either end, got {share}")
    drop = int(share * count + 1e-9)  # 0.1 * 30 is a little less than 3
    centre = np.empty(size)
    for start, stop in ranges(size, count, memory):
        values = _stacked(read, start, stop)
        values.sort(axis=0)
        centre[start:stop] = values[drop : count - drop].mean(axis=0)
    return centre


def squared_distances(read: Read, size: int, count: int, *, memory: int = MEMORY) -> Doubles:
    """(devices, devices) squared Euclidean distances, summed range by range."""
    total = np.zeros((count, count))
    for start, stop in ranges(size, count, memory):
        values = _stacked(read, start, stop)
        values -= values.mean(axis=0)  # distances stay, and a common offset cannot drown them in rounding
        squares = np.einsum("ij,ij->i", values, values)
        total += squares[:, None] + squares[None, :] - 2.0 * (values @ values.T)
    np.fill_diagonal(total, 0.0)
    return np.maximum(total, 0.0)


def krum(distances: Doubles, hostile: int, keep: int = 1) -> list[int]:
    """Indices of the `keep` devices with the smallest sums of distances to their nearest neighbours, best first.

    Neighbours are count - hostile - 2. With fewer than hostile + 3 devices it is one. Equal scores: the first wins.
    """
    count = len(distances)
    near = min(max(1, count - hostile - 2), count - 1)
    others = np.sort(distances + np.diag(np.full(count, np.inf)), axis=1)
    scores = others[:, :near].sum(axis=1) if near else np.zeros(count)
    return [int(i) for i in np.argsort(scores, kind="stable")[: max(1, keep)]]


def norms(read: Read, size: int, count: int, *, memory: int = MEMORY) -> Doubles:
    """Euclidean norm of every device's vector."""
    total = np.zeros(count)
    for start, stop in ranges(size, 1, memory):
        for i, vector in enumerate(read(start, stop)):
            wide = np.asarray(vector, np.float64)
            total[i] += wide @ wide
    return np.sqrt(total)


def clip_factors(lengths: Doubles, times: float = 1.0) -> Doubles:
    """What to multiply each vector with so that no norm is above `times` the cohort's median norm."""
    limit = times * float(np.median(lengths))
    return np.where(lengths > limit, limit / np.maximum(lengths, np.finfo(float).tiny), 1.0)


def mean(read: Read, size: int, weights: Doubles, *, memory: int = MEMORY) -> Doubles:
    """Sum of weights_i times vector_i, a vector at a time in the given order."""
    centre = np.zeros(size)
    for start, stop in ranges(size, 1, memory):
        for weight, vector in zip(weights, read(start, stop), strict=True):
            if weight:
                centre[start:stop] += weight * np.asarray(vector, np.float64)
    return centre


@dataclass(frozen=True)
class Robust:
    """A rule with its setting. `share` is the part of a cohort that may be hostile; `times` the clipping limit."""

    rule: Rule
    share: float = 0.2
    times: float = 1.0
    memory: int = MEMORY

    def centre(self, read: Read, size: int, count: int) -> Doubles:
        """The robust centre of `count` vectors of `size` values. ValueError if there are none."""
        if not count:
            raise ValueError("a robust centre needs at least one contribution")
        if self.rule is Rule.MEDIAN:
            return coordinate_median(read, size, count, memory=self.memory)
        if self.rule is Rule.TRIMMED:
            return trimmed_mean(read, size, count, self.share, memory=self.memory)
        weights = np.zeros(count)
        if self.rule is Rule.KRUM:
            hostile = int(np.ceil(self.share * count - 1e-9))
            distances = squared_distances(read, size, count, memory=self.memory)
            chosen = krum(distances, hostile, keep=count - hostile)
            weights[chosen] = 1.0 / len(chosen)
        else:
            weights = clip_factors(norms(read, size, count, memory=self.memory), self.times) / count
        return mean(read, size, weights, memory=self.memory)


Slice = Callable[[int, int], Vector]  # coordinates start:stop of one device's change


@dataclass(frozen=True)
class Sliced:
    """One device's change of one block that is read in pieces; otherwise as `Contribution`."""

    device: str
    samples: int
    steps: float
    read: Slice


def robust_fold(robust: Robust, size: int, cohort: Sequence[Sliced]) -> Folded | None:
    """As `aggregation.fold`, with a robust centre in place of the mean; None if nobody contributed.

    The centre is of changes per step and is carried on for the cohort's mean number of steps. The divergence is of
    changes cut to the median norm, so that one liar cannot make a block look worth training.
    """
    if not cohort:
        return None

    def read(start: int, stop: int) -> Iterator[Vector]:
        for one in cohort:
            yield np.asarray(one.read(start, stop), np.float64) / one.steps

    count = len(cohort)
    centre = robust.centre(read, size, count)
    lengths = norms(read, size, count, memory=robust.memory)
    energy = float(np.mean((lengths * clip_factors(lengths)) ** 2))
    squared = float(centre @ centre)
    value = None
    if count > 1 and energy > 0.0:
        value = min(1.0, max(0.0, 1.0 - squared / energy) / (1.0 - 1.0 / count))
    # A claim of steps was checked against what was assigned, so their mean cannot be carried away; and it is what the
    # plain mean goes on by: where most devices are slow, the median would make every round a short one.
    steps = float(np.mean([one.steps for one in cohort]))
    samples = sum(one.samples for one in cohort)
    return Folded(centre * steps, Divergence(value, squared**0.5, energy, count), samples)
