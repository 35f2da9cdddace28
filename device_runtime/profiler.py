"""How fast this device is: seconds per window and block, measured at birth and followed through real rounds.

`forward` of a modality is its encoder; `forward` of the shared block is the fusion layer and head of everything this
device owns. `backward` is the block's own, its update included. So a round's seconds are a plain sum over them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from models.local import Local
from models.spec import SHARED, Mode, ModelSpec
from protocol.messages import BlockSpeed

FADE = 0.6  # what a round still weighs after the next one
RECENT = 20  # rounds whose prediction errors are kept


class Time(Protocol):
    """device_runtime.stopwatch.BlockTime, without its torch."""

    forward: float
    backward: float
    encoded: int
    trained: int


@dataclass(frozen=True)
class Outcome:
    """A round as it was predicted and as it was, in seconds; 0 where nothing was predicted."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return abs(self.predicted - self.measured) / self.measured if self.measured > 0 else 0.0


@dataclass
class _Sums:
    """Seconds and windows of past rounds, older ones fading: a short, noisy round moves the quotient little."""

    seconds: float = 0.0
    windows: float = 0.0

    def add(self, seconds: float, windows: int) -> None:
        if windows > 0:
            self.seconds, self.windows = FADE * self.seconds + seconds, FADE * self.windows + windows

    @property
    def each(self) -> float:
        return self.seconds / self.windows if self.windows else 0.0


class Profile:
    """The running estimate, and how well it predicted the rounds so far."""

    def __init__(self) -> None:
        self.speed: dict[str, BlockSpeed] = {}
        self.outcomes: deque[Outcome] = deque(maxlen=RECENT)
        self._forward: dict[str, _Sums] = {}
        self._backward: dict[str, _Sums] = {}

    def observe(self, times: Mapping[str, Time]) -> None:
        """Take measured seconds into the estimate."""
        for block, t in times.items():
            forward, backward = self._forward.setdefault(block, _Sums()), self._backward.setdefault(block, _Sums())
            forward.add(t.forward, t.encoded)
            backward.add(t.backward, t.trained)
            self.speed[block] = BlockSpeed(forward=forward.each, backward=backward.each)

    def seconds(
        self,
        spec: ModelSpec,
        present: Sequence[str],
        steps: Mapping[str, int],
        local: Local,
        windows: int,
        lacking: Mapping[str, int] | None = None,
    ) -> float:
        """What training an assignment should take; 0 where a block of it was never measured.

        lacking    frozen encoders: how many windows have no features from earlier rounds; by default none has
        """
        if any(b not in self.speed for b in (*present, SHARED)):
            return 0.0
        total = max(steps.values(), default=0)
        here = 1.0 - local.dropout  # share of steps in which a modality takes part
        shared = self.speed[SHARED]
        seconds = (shared.forward * total + shared.backward * steps.get(SHARED, 0)) * local.batch
        frozen_for_good = spec.mode is Mode.LORA and not spec.encoder_rank
        for m in present:
            trained = steps.get(m, 0) * here
            still = (total - steps.get(m, 0)) * here
            seconds += self.speed[m].backward * trained * local.batch
            encoded = 0.0 if frozen_for_good else trained * local.batch
            rest = (total * here if frozen_for_good else still) * local.batch
            if local.cache:
                rest = min(rest, (lacking or {}).get(m, windows) if frozen_for_good else windows)
            seconds += self.speed[m].forward * (encoded + rest)
        return seconds

    def settle(self, predicted: float, measured: float) -> Outcome:
        """Remember how a prediction turned out."""
        outcome = Outcome(predicted, measured)
        if predicted > 0 and measured > 0:
            self.outcomes.append(outcome)
        return outcome

    @property
    def median_error(self) -> float:
        """Of the last rounds, relative; 0 before the first."""
        return median(o.error for o in self.outcomes) if self.outcomes else 0.0
