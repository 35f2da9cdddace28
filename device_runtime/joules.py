"""Energy of a round: from a power meter where there is one, else from the watts the configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from device_runtime.power import Allowance, Meter, PowerError, attributed, find

CONFIGURED = "configured"


@dataclass(frozen=True)
class Spent:
    """Joules of a round in total and attributed to blocks, and where the figures come from."""

    total: float = 0.0
    source: str = "none"
    blocks: dict[str, float] = field(default_factory=dict)


class Joules(Protocol):
    """Counts one training at a time."""

    source: str  # where the figures come from
    watts: float  # above idle while training, as far as it is known; 0: not yet

    @property
    def idle_watts(self) -> float:
        """What the board draws at rest; 0: not known."""

    def measure_idle(self, seconds: float) -> None:
        """Wait, and take what the board draws meanwhile as its power at rest."""

    def allowance(self, joules: float, before: float = 0.0) -> Callable[[], bool]:
        """Begin to count from `before`, which an earlier life of this process used for the same training.

        True once the next step would exceed this many joules (0: no limit).
        """

    def used(self) -> float:
        """Joules of the training that is counted, so far; 0 where they are not known."""

    def spent(self, seconds: Mapping[str, float]) -> Spent:
        """The same at its end, given the seconds that each block took in this life."""


def _no_limit() -> bool:
    return False


class ConfiguredWatts:
    """Joules as watts x seconds of computing: a figure that was set by hand, and labelled so.

    watts   above idle while training; 0: energy is not known
    """

    idle_watts = 0.0

    def __init__(self, watts: float, clock: Callable[[], float]) -> None:
        self.watts, self._clock = watts, clock
        self._before, self._began = 0.0, clock()
        self.source = CONFIGURED if watts else "none"

    def measure_idle(self, seconds: float) -> None:
        """The configured watts are above idle already."""

    def allowance(self, joules: float, before: float = 0.0) -> Callable[[], bool]:
        self._before, self._began = before, self._clock()
        if joules <= 0 or self.watts <= 0:
            return _no_limit
        return lambda: self.used() >= joules

    def used(self) -> float:
        return self._before + self.watts * (self._clock() - self._began)

    def spent(self, seconds: Mapping[str, float]) -> Spent:
        if self.watts <= 0:
            return Spent()
        blocks = {block: self.watts * s for block, s in seconds.items()}
        return Spent(self._before + sum(blocks.values()), CONFIGURED, blocks)


class Metered:
    """Joules above idle from a running meter; per block they are attributed, watts x its measured seconds."""

    def __init__(self, meter: Meter, source: str) -> None:
        self.meter, self.source = meter, source
        self.watts = 0.0
        self._before, self._mark = 0.0, meter.mark()

    @property
    def idle_watts(self) -> float:
        return self.meter.idle_watts

    def measure_idle(self, seconds: float) -> None:
        self.meter.measure_idle(seconds)

    def allowance(self, joules: float, before: float = 0.0) -> Callable[[], bool]:
        self._before, self._mark = before, self.meter.mark()
        return Allowance(self.meter, joules - before) if joules > 0 else _no_limit

    def used(self) -> float:
        return self._before + self.meter.since(self._mark).active

    def spent(self, seconds: Mapping[str, float]) -> Spent:
        energy = self.meter.since(self._mark)
        self.source, self.watts = energy.source, energy.active_watts
        return Spent(self._before + energy.active, energy.source, attributed(energy, seconds))


def meter(sources: Sequence[str], idle_watts: float) -> tuple[Metered | None, str]:
    """A running meter over the first source that works, and a line that says which and why; None where none does."""
    try:
        found = find(sources)
    except PowerError as error:
        return None, str(error)
    running = Meter(found.monitor, idle_watts=idle_watts, again=lambda: find(sources).monitor)
    running.start()
    return Metered(running, found.monitor.source), f"power from {found.report()}"
