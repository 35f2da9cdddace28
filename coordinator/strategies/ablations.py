"""RELIEF with one thing changed: which blocks are chosen and how updates are weighted."""

from __future__ import annotations

import numpy as np

from coordinator.aggregation import Weighting
from coordinator.divergence import Signal
from coordinator.strategies.momentum import CohortStepsMomentum, ReliefMomentum


class ReliefMomentumSamples(ReliefMomentum):
    """Plain n_i weighting instead of the step-normalised mean."""

    name = "relief-momentum-samples"
    weighting = Weighting.SAMPLES


class CohortStepsSamples(CohortStepsMomentum):
    """The same without divergence: everything owned is trained for as many steps as the deadline allows."""

    name = "cohort-steps-momentum-samples"
    weighting = Weighting.SAMPLES


class ReliefNorm(ReliefMomentumSamples):
    """Guided by the blocks' relative update norms instead of the cohorts' divergence."""

    name = "relief-momentum-norm"
    signal = Signal.NORM


class ReliefRandom(ReliefMomentumSamples):
    """Blocks are worth what a die says, drawn anew every round from the run's seed."""

    name = "relief-momentum-random"

    def utility(self, round: int) -> dict[str, float]:
        draws = np.random.default_rng([self.settings.local.seed, round]).random(len(self.spec.names))
        return dict(zip(self.spec.names, draws.tolist(), strict=True))
