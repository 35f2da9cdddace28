"""What keeps bad devices out beyond the shape of one update: a norm bound from the cohort's medians, and quarantine."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from coordinator.quarantine import Held, Limits, Slates
from models.local import effective_steps
from models.partition import Vector
from protocol.messages import Update

COHORT = 3  # updates of a round from which a median says something
WARM_UP = 5  # rounds in which lengths may grow as they like: in lora they begin near zero
INNOCENT = ("stale", "duplicate", "quarantined", "not assigned")  # refusals that any honest device can meet


class Defence:
    """Judges updates before they are stored, and counts refusals per device.

    bound      an update is refused whose change per step is longer than so many times the largest median length of any
               round before; 0: no bound. Not of the last round: as training converges most steps shrink to nothing, and
               an honest device was seen 30 times as long as the median. The bound of a block begins after
               WARM_UP rounds of COHORT updates. Refused lengths count for the median too: a cohort that moves on as a
               whole is let in a round later, a minority never
    limits     when refusals lead into quarantine; None: never
    momentum   of the local rule, which a step's length depends on
    """

    def __init__(self, *, bound: float = 10.0, limits: Limits | None = None, momentum: float = 0.0) -> None:
        self.bound, self._momentum = bound, momentum
        self._slates = Slates(limits) if limits else None
        self.medians: dict[str, float] = {}  # block -> largest median, of all rounds, of the changes' length per step
        self._round: dict[str, dict[str, float]] = defaultdict(dict)  # block -> device -> length per step
        self._rounds: dict[str, int] = defaultdict(int)  # block -> rounds with a median

    def judge(self, update: Update, *, asked: bool = True) -> str:
        """Why this update is refused, or an empty string. Its tensors were checked before (coordinator.intake).

        `asked`: it answers an assignment of this round; others have no say in the median.
        """
        reason = ""
        for block, work in update.blocks.items():
            if not work.steps:
                continue  # the round core says what is wrong with that
            length = norm(work.delta.array()) / effective_steps(work.steps, self._momentum)
            usual = self.medians.get(block, 0.0) if self._rounds[block] >= WARM_UP else 0.0
            if asked:
                self._round[block][update.device] = length
            if self.bound and usual and length > self.bound * usual:
                reason = reason or (
                    f"block {block}: norm {length:.3g} a step, the cohort's median was never above {usual:.3g} and "
                    f"at most {self.bound:g} times that is taken"
                )
        return reason

    def accepted(self, device: str) -> None:
        """An update of the device is stored."""
        if self._slates:
            self._slates.accepted(device)

    def committed(self) -> None:
        """A round is closed: its medians count for the bound from now on."""
        for block, lengths in self._round.items():
            if len(lengths) >= COHORT:
                median = float(np.median(list(lengths.values())))
                self.medians[block] = max(median, self.medians.get(block, 0.0))
                self._rounds[block] += 1
        self._round.clear()

    @property
    def lengths(self) -> dict[str, float]:
        """block -> median that bounds it now; `restore` takes it in another life of the coordinator."""
        return {block: median for block, median in self.medians.items() if self._rounds[block] >= WARM_UP}

    def restore(self, lengths: Mapping[str, float]) -> None:
        """Go on with the bounds of an earlier life."""
        self.medians.update(lengths)
        self._rounds.update(dict.fromkeys(lengths, WARM_UP))

    def refused(self, device: str, reason: str, now: float) -> Held | None:
        """Count a refusal; what holds the device from now on, if this one was too much."""
        if self._slates is None or reason.startswith(INNOCENT):
            return None
        return self._slates.refused(device, reason.split(":")[0], now)

    def released(self, device: str) -> None:
        """An operator takes the device in again: what it was refused before is forgotten."""
        if self._slates:
            self._slates.wipe(device)


def norm(values: Vector) -> float:
    """Euclidean length, in single precision where that does not overflow: no copy of the values is made then."""
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    with np.errstate(over="ignore"):
        square = float(np.dot(values, values))
    if not math.isfinite(square):
        wide = values.astype(np.float64)
        square = float(np.dot(wide, wide))
    return math.sqrt(square)
