"""Quarantine: who is refused again and again is left out for a while, and can come back. Pure, given `now`.

A device is held after `strikes` refusals within `within` seconds, for `hold` seconds, doubled each time up to
`longest`. After that it is on probation: one more refusal holds it again, `clear` accepted updates in a row wipe its
slate clean. Here refusals are counted; who is held, by this rule or by an operator, is in the registry alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True)
class Limits:
    """When a device is held and how it comes back; times in seconds."""

    strikes: int = 3
    within: float = 3600.0
    hold: float = 600.0
    longest: float = 86_400.0
    clear: int = 3

    def __post_init__(self) -> None:
        if self.strikes < 1 or self.clear < 1 or not 0 < self.hold <= self.longest or self.within <= 0:
            raise ValueError(f"quarantine: strikes and clear from 1 on, 0 < hold <= longest, within > 0; got {self}")


@dataclass(frozen=True)
class Held:
    """Why and until when a device is left out; `until` is infinite where only an operator can end it."""

    reason: str
    until: float = inf


@dataclass
class _Slate:
    refusals: list[tuple[float, str]] = field(default_factory=list)  # (when, reason), within the window
    times: int = 0  # how often it was held since its slate was clean
    good: int = 0  # accepted updates in a row since


class Slates:
    """The slates of a fleet. Devices without refusals have none, so memory follows the offenders only.

    Nothing is to be counted for or against a device while it is held (coordinator.refusals).
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._slates: dict[str, _Slate] = {}

    def refused(self, device: str, reason: str, now: float) -> Held | None:
        """Count a refusal that was the device's fault; what holds it from now on if it was one too many, else None."""
        slate = self._slates.setdefault(device, _Slate())
        slate.good = 0
        since = now - self.limits.within
        slate.refusals = [(when, why) for when, why in slate.refusals if when > since] + [(now, reason)]
        if len(slate.refusals) < (1 if slate.times else self.limits.strikes):
            return None
        seconds = min(self.limits.hold * 2.0 ** min(slate.times, 64), self.limits.longest)
        reasons = sorted({why for _, why in slate.refusals})
        text = f"{len(slate.refusals)} refusals within {self.limits.within:g} s: {'; '.join(reasons)[:200]}"
        slate.times, slate.refusals = slate.times + 1, []
        return Held(text, now + seconds)

    def accepted(self, device: str) -> None:
        """Count an accepted update; enough of them in a row end the probation."""
        slate = self._slates.get(device)
        if slate is None:
            return
        slate.good += 1
        if slate.good >= self.limits.clear:
            del self._slates[device]

    def wipe(self, device: str) -> None:
        """Forget what was refused of the device, as an operator's release does."""
        self._slates.pop(device, None)
