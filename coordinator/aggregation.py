"""Folding a cohort's updates of one block into one change, in device order and in memory that the fleet does not grow.

Default (arXiv 2604.04243 with FedNova's normalisation, arXiv 2007.07481): Delta_m = tau * sum p_i Delta_i / a_i with
p_i = n_i / sum n_j and tau = sum p_i a_i, over the devices that trained the block and over no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from models.partition import Vector


class Weighting(str, Enum):
    """How a cohort's updates become one.

    NOVA      step-normalised mean over the trainers, so that unequal step budgets do not bias it
    SAMPLES   plain n_i weighting over the trainers (an ablation)
    DILUTED   n_i weighting over everybody who sent anything: who did not train the block counts as zero (FedAvg)
    """

    NOVA = "nova"
    SAMPLES = "samples"
    DILUTED = "diluted"


@dataclass(frozen=True)
class Contribution:
    """One device's change of one block: `steps` is a_i, the effective step count (models.effective_steps)."""

    device: str
    samples: int
    steps: float
    delta: Vector


@dataclass(frozen=True)
class Divergence:
    """How much a cohort disagreed on a block.

    D = 1 - |sum q g|^2 / sum q |g|^2 of the step-normalised updates g_i = Delta_i / a_i, corrected for the cohort's
    size (D' = D / (1 - sum q^2), at most 1), so that independent noise gives 1 for any number of devices. None with
    one trainer. `norm` is |sum q g|, the mean update per step; `energy` is sum q |g|^2.
    """

    value: float | None
    norm: float
    energy: float
    trainers: int


@dataclass(frozen=True)
class Folded:
    """The cohort's change of one block (float64) and what it says about the cohort; `samples` behind it."""

    delta: npt.NDArray[np.float64]
    divergence: Divergence
    samples: int


def fold(
    size: int, contributions: Iterable[Contribution], weighting: Weighting = Weighting.NOVA, total_samples: int = 0
) -> Folded | None:
    """Fold the contributions to a block of `size` values; None if there are none (the block stays as it is).

    Everything is computed in float64, whatever the deltas travelled as, and summed in the order given: give them in
    device order and the result is the same to the last bit.
    `total_samples` is the samples of everybody in the round, which DILUTED divides by.
    """
    steps_sum = np.zeros(size)  # sum n g
    plain_sum = np.zeros(size) if weighting is not Weighting.NOVA else steps_sum
    # Two buffers for all: fresh ones per device would be mapped and unmapped each time.
    wide, scratch = np.empty(size), np.empty(size)
    samples = squares = 0
    weighted_steps = energy = 0.0
    trainers = 0
    for one in contributions:
        n = one.samples
        np.copyto(wide, one.delta)  # first of all: a product of float16 values would be rounded to float16 itself
        if plain_sum is not steps_sum:
            plain_sum += np.multiply(wide, n, out=scratch)
        wide /= one.steps  # g
        energy += n * float(wide @ wide)
        steps_sum += np.multiply(wide, n, out=scratch)
        weighted_steps += n * one.steps
        samples, squares, trainers = samples + n, squares + n * n, trainers + 1
    if not trainers or not samples:
        return None
    mean = steps_sum / samples
    divergence = _divergence(mean, energy / samples, squares / samples**2, trainers)
    if weighting is Weighting.NOVA:
        delta = mean * (weighted_steps / samples)
    else:
        delta = plain_sum / (samples if weighting is Weighting.SAMPLES else max(total_samples, samples))
    return Folded(delta, divergence, samples)


def _divergence(mean: npt.NDArray[np.float64], energy: float, q2: float, trainers: int) -> Divergence:
    squared = float(mean @ mean)
    value = None
    if trainers > 1 and energy > 0.0:
        value = min(1.0, max(0.0, 1.0 - squared / energy) / (1.0 - q2))
    return Divergence(value, squared**0.5, energy, trainers)
