"""Energy of a round: from a power meter where there is one, else from the watts the configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

CONFIGURED = "configured"


@dataclass(frozen=True)
class Spent:
    """Joules of a round in total and attributed to blocks, and where the figures come from."""

    total: float = 0.0
    source: str = "none"
    blocks: dict[str, float] = field(default_factory=dict)


class Joules(Protocol):
    """Counts one training at a time."""

    def allowance(self, joules: float) -> Callable[[], bool]:
        """Begin to count; True once the next step would exceed this many joules (0: no limit)."""

    def spent(self, seconds: Mapping[str, float]) -> Spent:
        """What was used since then, given each block's seconds."""


def _no_limit() -> bool:
    return False


class ConfiguredWatts:
    """Joules as watts x seconds of computing: a figure that was set by hand, and labelled so.

    watts   above idle while training; 0: energy is not known
    """

    def __init__(self, watts: float, clock: Callable[[], float]) -> None:
        self.watts, self._clock = watts, clock

    def allowance(self, joules: float) -> Callable[[], bool]:
        if joules <= 0 or self.watts <= 0:
            return _no_limit
        ends = self._clock() + joules / self.watts
        return lambda: self._clock() >= ends

    def spent(self, seconds: Mapping[str, float]) -> Spent:
        if self.watts <= 0:
            return Spent()
        blocks = {block: self.watts * s for block, s in seconds.items()}
        return Spent(sum(blocks.values()), CONFIGURED, blocks)
