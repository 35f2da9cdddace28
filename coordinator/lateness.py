"""Buffered rounds: who was asked in a round that has closed and may still answer, and what a late update weighs.

FedBuff's rule (Nguyen et al. 2022, arXiv 2106.06639): an update that began s versions ago counts with 1 / sqrt(1 + s),
not normed over the buffer, so a late change is a smaller one. Staleness is counted block by block, in versions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import sqrt

import numpy as np

from coordinator.events import UpdateHead
from models.partition import Vector
from protocol.messages import Assignment


def aged(
    delta: Callable[[UpdateHead, str], Vector], versions: Mapping[str, int]
) -> Callable[[UpdateHead, str], Vector]:
    """`delta` with late changes made smaller. One that began from the present version keeps every bit."""

    def weighed(head: UpdateHead, block: str) -> Vector:
        staleness = versions[block] - head.blocks[block][0]
        vector = delta(head, block)
        if staleness <= 0:
            return vector
        smaller: Vector = np.divide(vector, sqrt(1.0 + staleness), dtype=np.float64)
        return smaller

    return weighed


def unanswered(
    late: Mapping[str, Assignment], assignments: Mapping[str, Assignment], stored: Mapping[str, UpdateHead]
) -> dict[str, Assignment]:
    """What may still be answered after a round in which `stored` came. Of a device's two the newer one stays."""
    return {
        device: a
        for device, a in {**late, **assignments}.items()
        if device not in stored or stored[device].assignment != a.id
    }


class Latecomers:
    """Assignments of closed rounds, at most `staleness` rounds old: device -> assignment.

    A device that has begun another life has lost its training, and what lies in its outbox may still come: it is free
    for a new assignment, the others are busy.
    """

    def __init__(self, staleness: int) -> None:
        self.staleness = staleness
        self.assignments: dict[str, Assignment] = {}
        self._restarted: set[str] = set()

    @property
    def busy(self) -> Collection[str]:
        """Devices that still train."""
        return self.assignments.keys() - self._restarted

    def last_chance(self, round: int) -> Collection[str]:
        """Busy devices whose work will be lost if it is not in `round`."""
        return {d for d in self.busy if self.assignments[d].round + self.staleness <= round}

    def keep(self, assignments: Mapping[str, Assignment], round: int, declined: Collection[str] = ()) -> None:
        """These may still be answered in `round`, apart from those that are too old or declined."""
        before, self.assignments = (
            self.assignments,
            {d: a for d, a in sorted(assignments.items()) if round - a.round <= self.staleness and d not in declined},
        )
        # What a device was asked in its new life it trains: were it still taken for free, every round would ask it
        # anew, and it would never finish where rounds are short.
        self._restarted = {d for d in self._restarted if d in self.assignments and self.assignments[d] == before.get(d)}

    def restarted(self, device: str) -> None:
        """The device lives anew."""
        if device in self.assignments:
            self._restarted.add(device)

    def dropped(self, device: str, assignment: str) -> bool:
        """The device says that it will not answer; False where it was not asked."""
        if device not in self.assignments or self.assignments[device].id != assignment:
            return False
        del self.assignments[device]
        return True
