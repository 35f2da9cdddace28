"""How long a round may last, learned while the rounds run: what it brings per second decides.

Two lengths a factor apart take turns as ABBA, a few rounds each, so that learning that slows down steadily favours
neither. What counts is the decrease of the log training loss per second *within* a stay: between stays it says nothing,
because the mean loss over fewer local steps is higher whatever the round was worth. The better length stays and meets
its neighbour; the best so far is kept where neither is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite, log
from typing import Any

STAY = 4  # rounds of one length before the other has its turn
FACTOR = 2**0.5  # between neighbouring lengths
SHORTEST = -6  # an eighth of the fastest device's full round: little more than a step
TURNS = (0, 1, 1, 0)  # who stays when: the incumbent and its challenger


@dataclass
class LearnedDeadline:
    """A search over deadlines FACTOR**level x the fastest device's full round (or the least, if longer), from level 0.

    stay      (seconds, mean loss) of the rounds of this stay
    brought   per turn of this comparison, (decrease of the log loss, seconds it took)
    shortest  level below which a cohort could not keep up;  longest  at which the slowest device's full round fits
    """

    level: int = 0
    towards: int = -1
    stay: list[list[float]] = field(default_factory=list)
    brought: list[list[float]] = field(default_factory=list)
    shortest: float = SHORTEST
    longest: float = 0.0

    def deadline(self, fastest: float, slowest: float, least: float = 0.0) -> float:
        """Seconds of the next round, at least `least`; the fleet's full rounds take from `fastest` to `slowest`."""
        fastest = max(fastest, least)
        self.shortest = max(SHORTEST, log(least / fastest) / log(FACTOR)) if least > 0 else SHORTEST
        self.longest = log(slowest / fastest) / log(FACTOR) if slowest > fastest > 0 else 0.0
        return max(least, min(fastest * FACTOR ** self._now(), max(fastest, slowest)))

    def heard(self, seconds: float, loss: float) -> None:
        """A round at the current deadline took `seconds` and had this mean training loss."""
        self.stay.append([seconds, loss])
        if len(self.stay) < STAY:
            return
        self.brought.append(_brought(self.stay))
        self.stay = []
        if len(self.brought) == len(TURNS):
            self._decide()

    def _now(self) -> int:
        return self.level + self.towards * TURNS[len(self.brought)]

    def _decide(self) -> None:
        """Keep the better of the two and choose the next challenger: on the same way after a gain, else the other."""
        mine, theirs = (_rate([b for b, t in zip(self.brought, TURNS, strict=True) if t == who]) for who in (0, 1))
        if theirs > mine:
            self.level += self.towards
        else:
            self.towards = -self.towards
        if not self.shortest - 1 < self.level + self.towards < self.longest + 1:
            self.towards = -self.towards
        self.brought = []

    def state(self) -> dict[str, Any]:
        """Plain values from which `restored` continues."""
        return asdict(self)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> LearnedDeadline:
        return cls(**state)


def _brought(stay: list[list[float]]) -> list[float]:
    """(decrease of the log loss, seconds) from the first round of a stay to its last, whose own work shows later."""
    first, last = stay[0][1], stay[-1][1]
    good = isfinite(first) and isfinite(last) and first > 0 and last > 0
    return [log(first / last) if good else -1e9, sum(seconds for seconds, _ in stay[:-1])]


def _rate(turns: list[list[float]]) -> float:
    seconds = sum(s for _, s in turns)
    return sum(gain for gain, _ in turns) / seconds if seconds > 0 else 0.0
