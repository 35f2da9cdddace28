"""What a power monitor is, and which one this machine has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

ESTIMATE = "estimate"


@dataclass(frozen=True)
class Sample:
    """The board's power at one moment.

    t             seconds on the monotonic clock when it was measured
    watts         the board's total; which rails it sums is in `summed`
    rails         rail -> watts, also those that are inside another one
    source        jtop, ina3221, ina238, rapl or estimate
    temperatures  zone -> degrees Celsius
    mode          the power mode's name as nvpmodel gives it; "" where there is none
    counter       joules since `open`, where the source counts energy itself (rapl); None elsewhere
    """

    t: float
    watts: float
    source: str
    rails: Mapping[str, float] = field(default_factory=dict)
    summed: tuple[str, ...] = ()
    temperatures: Mapping[str, float] = field(default_factory=dict)
    mode: str = ""
    counter: float | None = None

    @property
    def measured(self) -> bool:
        """False for the estimate, which must never be shown as a measurement."""
        return self.source != ESTIMATE


class Monitor(Protocol):
    """A source of power samples. Used by one thread at a time."""

    source: str

    def open(self) -> None:
        """Get ready. Raises PowerError where this machine cannot be measured this way."""

    def read(self) -> Sample:
        """The newest sample. Raises PowerError if there is none to be had now; a later call may work again."""

    def close(self) -> None:
        """Let go of everything; may be called twice."""


class PowerError(Exception):
    """Power cannot be read from `source`; the text says why and what to do."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"power from {source}: {reason}")
        self.source, self.reason = source, reason


@dataclass(frozen=True)
class Found:
    """An open monitor, and why those before it in the order were not taken: (source, reason) each."""

    monitor: Monitor
    refused: tuple[tuple[str, str], ...] = ()

    def report(self) -> str:
        """One line for `relief device check` and the log."""
        why = "; ".join(f"{source}: {reason}" for source, reason in self.refused)
        return f"{self.monitor.source}" + (f" (not {why})" if why else "")


def now() -> float:
    """Seconds on the clock that all samples share."""
    return time.monotonic()
