"""A strategy of one's own: RELIEF, but everybody may take twice the fastest device's time."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.strategies.relief import Relief
from coordinator.work import Member


class Patient(Relief):
    """More steps a round for slow devices, fewer rounds an hour."""

    name = "patient"
    source = "an example"

    def deadline(self, members: Sequence[Member]) -> float:
        return 2.0 * super().deadline(members)
