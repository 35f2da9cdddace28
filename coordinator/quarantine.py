"""Quarantine: who is refused again and again is left out for a while, and can come back. Pure, given `now`.

A device is held after `strikes` refusals within `within` seconds, for `hold` seconds, doubled each time up to
`longest`. After that it is on probation: one more refusal holds it again, `clear` accepted updates in a row wipe its
slate clean. An operator may hold and release at any time; what an operator holds only an operator releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any


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
    since: float
    until: float


@dataclass
class _Slate:
    refusals: list[tuple[float, str]] = field(default_factory=list)  # (when, reason), within the window
    times: int = 0  # how often it was held since its slate was clean
    good: int = 0  # accepted updates in a row since
    held: Held | None = None


class Quarantine:
    """The slates of a fleet. Devices without refusals have none, so memory follows the offenders only."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._slates: dict[str, _Slate] = {}

    def refused(self, device: str, reason: str, now: float) -> Held | None:
        """Count a refusal that was the device's fault; what holds it if this one did, else None."""
        slate = self._slates.setdefault(device, _Slate())
        slate.good = 0
        if self.held(device, now):
            return None
        since = now - self.limits.within
        slate.refusals = [(when, why) for when, why in slate.refusals if when > since] + [(now, reason)]
        if len(slate.refusals) < (1 if slate.times else self.limits.strikes):
            return None
        seconds = min(self.limits.hold * 2.0 ** min(slate.times, 64), self.limits.longest)
        reasons = sorted({why for _, why in slate.refusals})
        text = f"{len(slate.refusals)} refusals within {self.limits.within:g} s: {'; '.join(reasons)[:200]}"
        slate.times, slate.refusals = slate.times + 1, []
        slate.held = Held(text, now, now + seconds)
        return slate.held

    def accepted(self, device: str) -> None:
        """Count an accepted update; enough of them in a row end the probation."""
        slate = self._slates.get(device)
        if slate is None or slate.held:
            return
        slate.good += 1
        if slate.good >= self.limits.clear:
            del self._slates[device]

    def held(self, device: str, now: float) -> Held | None:
        """What holds the device at this time; None when it may take part, on probation or not."""
        slate = self._slates.get(device)
        if slate is None or slate.held is None:
            return None
        if now >= slate.held.until:
            slate.held = None  # on probation: `times` stays
            return None
        return slate.held

    def hold(self, device: str, reason: str, now: float) -> Held:
        """An operator's hold: until an operator releases."""
        slate = self._slates.setdefault(device, _Slate())
        slate.held = Held(reason, now, inf)
        return slate.held

    def release(self, device: str) -> bool:
        """An operator's release: the slate is clean. False if the device was not held."""
        slate = self._slates.pop(device, None)
        return slate is not None and slate.held is not None

    def all_held(self, now: float) -> dict[str, Held]:
        """Everybody who is held, in order."""
        return {d: held for d in sorted(self._slates) if (held := self.held(d, now))}

    @property
    def wake(self) -> float:
        """When the next hold ends; infinite if none does by itself."""
        return min((s.held.until for s in self._slates.values() if s.held), default=inf)

    def state(self, now: float) -> dict[str, Any]:
        """What must survive a restart, as plain values; times relative to `now`, since clocks do not survive."""
        plain = {}
        for device, slate in self._slates.items():
            held = asdict(slate.held) if slate.held else None
            if held:
                held["since"], held["until"] = (
                    held["since"] - now,
                    None if held["until"] == inf else held["until"] - now,
                )
            refusals = [[when - now, why] for when, why in slate.refusals]
            plain[device] = {"refusals": refusals, "times": slate.times, "good": slate.good, "held": held}
        return plain

    def restore(self, plain: Mapping[str, Any], now: float) -> None:
        """Continue from `state`."""
        self._slates = {}
        for device, one in plain.items():
            held = one["held"]
            if held:
                until = inf if held["until"] is None else held["until"] + now
                held = Held(held["reason"], held["since"] + now, until)
            refusals = [(when + now, why) for when, why in one["refusals"]]
            self._slates[device] = _Slate(refusals, int(one["times"]), int(one["good"]), held)
