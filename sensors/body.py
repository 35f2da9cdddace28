"""Bodies that move: what sensors at several places would see of a person doing something. Plausible, not physiology.

A bout of an activity has a cadence; every place swings at its harmonics around a posture that turns gravity; effort
drives the heart, slowly; each person has their own build, fitness and way of strapping sensors on. All of it follows
from seeds.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
GRAVITY = 9.81  # m/s2
EARTH_FIELD = np.array([22.0, 5.0, -42.0])  # uT, some place in Europe
PLACES = ("chest", "wrist", "ankle", "hand", "arm")
KINDS = {"acc": "m/s2", "gyro": "rad/s", "mag": "uT"}


@dataclass(frozen=True)
class Activity:
    """cadence in Hz (0: still); effort 0 to 1; how far (m/s2) trunk, arm, leg swing; posture 0 upright to 1 lying."""

    name: str
    cadence: float
    effort: float
    trunk: float = 0.1
    arm: float = 0.1
    leg: float = 0.1
    posture: float = 0.0
    sharpness: float = 0.3  # share of the higher harmonics: impacts


CATALOGUE = {
    a.name: a
    for a in (
        Activity("lying", 0.0, 0.00, posture=1.0),
        Activity("sitting", 0.0, 0.05, arm=0.3, posture=0.25),
        Activity("standing", 0.0, 0.08, arm=0.2, leg=0.15),
        Activity("walking", 0.95, 0.25, trunk=1.6, arm=2.5, leg=5.0),
        Activity("nordic_walking", 0.95, 0.42, trunk=1.7, arm=6.0, leg=5.2),
        Activity("ascending_stairs", 0.85, 0.50, trunk=1.8, arm=2.2, leg=4.2, posture=0.08, sharpness=0.45),
        Activity("descending_stairs", 0.95, 0.30, trunk=2.2, arm=2.2, leg=5.6, sharpness=0.6),
        Activity("cycling", 1.05, 0.35, trunk=0.6, arm=0.6, leg=3.6, posture=0.2, sharpness=0.1),
        Activity("cycling_hard", 1.1, 0.75, trunk=0.7, arm=0.65, leg=3.9, posture=0.21, sharpness=0.12),
        Activity("jogging", 1.3, 0.65, trunk=5.0, arm=6.0, leg=10.0, sharpness=0.55),
        Activity("running", 1.45, 0.90, trunk=6.2, arm=7.5, leg=13.0, sharpness=0.6),
        Activity("rope_jumping", 1.9, 0.85, trunk=7.0, arm=4.5, leg=8.0, sharpness=0.7),
        Activity("waist_bends", 0.4, 0.28, trunk=3.5, arm=3.5, leg=0.4, posture=0.3, sharpness=0.1),
        Activity("arm_raising", 0.45, 0.20, trunk=0.3, arm=4.5, leg=0.2, sharpness=0.1),
        Activity("knees_bending", 0.5, 0.45, trunk=2.2, arm=1.0, leg=2.6, posture=0.1, sharpness=0.2),
        Activity("vacuum_cleaning", 0.6, 0.30, trunk=0.9, arm=3.0, leg=0.8, posture=0.18, sharpness=0.3),
        Activity("ironing", 0.55, 0.15, trunk=0.3, arm=1.8, leg=0.2, posture=0.05, sharpness=0.25),
    )
}


def rng_of(*seeds: int | str) -> np.random.Generator:
    """A generator named by numbers and words, the same on every machine."""
    return np.random.default_rng([s if isinstance(s, int) else zlib.crc32(s.encode()) for s in seeds])


class Wearer:
    """One person: build, fitness, habits and how they wear their sensors."""

    def __init__(self, seed: int, subject: str) -> None:
        self.seed, self.subject = seed, subject
        own = rng_of(seed, subject, "person")
        self.pace = own.normal(1.0, 0.09)
        self.vigour = float(np.exp(own.normal(0.0, 0.28)))
        self.rest_bpm, self.top_bpm = own.normal(66.0, 7.0), own.normal(182.0, 9.0)
        self.beat = own.normal(1.0, 0.12, 5)  # heights of P, Q, R, S, T
        self.mounting = {place: _rotation(own, 0.35) for place in PLACES}

    def bout(self, activity: Activity, number: int, rate_hz: float, samples: int) -> Bout:
        """The wearer does `activity` for the `number`-th time."""
        return Bout(self, activity, number, rate_hz, samples)


class Bout:
    """`samples` samples of one wearer doing one thing, seen by whatever sensor asks."""

    def __init__(self, wearer: Wearer, activity: Activity, number: int, rate_hz: float, samples: int) -> None:
        self._wearer, self._activity, self._number = wearer, activity, number
        self._rate, self._n = rate_hz, samples
        own = self._rng("pace")
        wander = _smooth(own, samples, 4.0 * rate_hz) * 0.04
        self._phase = np.cumsum(2 * np.pi * activity.cadence * wearer.pace * own.normal(1.0, 0.03) * (1 + wander))
        self._phase = self._phase / rate_hz + own.uniform(0, 2 * np.pi)
        self._heading = own.uniform(0, 2 * np.pi) + np.cumsum(_smooth(own, samples, 6.0 * rate_hz)) * 0.15 / rate_hz

    def see(self, place: str, kind: str) -> Reals:
        """(samples, 3) of an inertial sensor, in the units of KINDS."""
        a, w, own = self._activity, self._wearer, self._rng(place, kind)
        reach = {"chest": a.trunk, "ankle": a.leg}.get(place, a.arm) * w.vigour * own.normal(1.0, 0.12)
        if kind == "mag":
            east, north = np.cos(self._heading), np.sin(self._heading)
            level = np.stack([east * 22.0 - north * 5.0, north * 22.0 + east * 5.0, np.full(self._n, -42.0)], axis=1)
            seen = level @ self._tilt(place).T + 0.6 * reach * self._swing(place, "acc")
            return np.asarray((seen + own.normal(0, 0.4, seen.shape)) @ w.mounting[place].T)
        swing = self._swing(place, kind) * (reach if kind == "acc" else 0.35 * reach)
        fidget = np.stack([_smooth(own, self._n, 0.7 * self._rate) for _ in range(3)], axis=1) * (0.25 + 0.12 * reach)
        noise = own.normal(0, 0.35 if kind == "acc" else 0.15, swing.shape)
        rest = self._tilt(place) @ np.array([0.0, 0.0, GRAVITY]) if kind == "acc" else np.zeros(3)
        return np.asarray((rest + swing + fidget + noise) @ w.mounting[place].T)

    def heart_rate(self) -> Reals:
        """(samples,) beats per minute: half way from the last effort to this one, with its own restlessness."""
        own, w = self._rng("heart"), self._wearer
        effort = self._activity.effort * own.normal(1.0, 0.08)
        target = w.rest_bpm + effort * (w.top_bpm - w.rest_bpm)
        before = target + own.normal(-4.0, 9.0)
        lag = np.exp(-np.arange(self._n) / (25.0 * self._rate))
        return np.asarray(target + (before - target) * lag + 2.5 * _smooth(own, self._n, 5.0 * self._rate))

    def ecg(self) -> Reals:
        """(samples, 2) millivolts: beats at the heart's rate, breathing and the electrodes' motion."""
        own, w = self._rng("ecg"), self._wearer
        cycle = np.cumsum(self.heart_rate() / 60.0 / self._rate) + own.uniform()  # whole numbers are R peaks
        beat = cycle - np.round(cycle)
        heights = np.array([[0.12, -0.12, 1.1, -0.25, 0.28], [0.08, -0.05, 0.7, -0.35, 0.20]]) * w.beat
        waves = np.exp(-0.5 * ((beat[:, None] - np.array(_WAVE_AT)) / np.array(_WAVE_WIDTH)) ** 2)
        breath = 0.06 * np.sin(2 * np.pi * 0.27 * np.arange(self._n) / self._rate + own.uniform(0, 6))
        artefact = 0.015 * self._activity.trunk * np.stack([np.cos(2 * self._phase), np.sin(self._phase)], axis=1)
        return np.asarray(waves @ heights.T + breath[:, None] + artefact + own.normal(0, 0.07, (self._n, 2)))

    def _rng(self, *what: str) -> np.random.Generator:
        w = self._wearer
        return rng_of(w.seed, w.subject, self._activity.name, self._number, *what)

    def _swing(self, place: str, kind: str) -> Reals:
        """(samples, 3): harmonics of the cadence in directions of the activity, the wearer and the day."""
        if not self._activity.cadence:
            return np.zeros((self._n, 3))
        style = rng_of(self._activity.name, place, kind)
        manner = rng_of(self._wearer.seed, self._wearer.subject, self._activity.name, place, kind)
        today = self._rng(place, kind, "manner")
        total = np.zeros((self._n, 3))
        for harmonic in (1, 2, 3, 4):
            height = 1.0 if harmonic == 1 else self._activity.sharpness ** (harmonic - 1) * 1.5
            direction = style.normal(0, 1, 3) + manner.normal(0, 0.6, 3) + today.normal(0, 0.4, 3)
            offset = style.uniform(0, 2 * np.pi, 3) + manner.normal(0, 0.5, 3) + today.normal(0, 0.3, 3)
            total += height * direction / 2.0 * np.cos(harmonic * self._phase[:, None] + offset)
        return total

    def _tilt(self, place: str) -> Reals:
        """The posture's rotation of gravity: legs stay upright until the person lies down."""
        lean = self._activity.posture
        angle = lean * np.pi / 2 if place != "ankle" or lean > 0.5 else 0.3 * lean
        habit = rng_of(self._wearer.seed, self._wearer.subject, self._activity.name, place, "posture", self._number)
        if place in ("wrist", "hand", "arm"):
            angle += rng_of(self._activity.name, "arm").uniform(0.0, 1.0)
        angle += habit.normal(0, 0.12)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _rotation(habit, 0.06)


# Of P, Q, R, S and T, in parts of a beat.
_WAVE_AT = (-0.18, -0.035, 0.0, 0.035, 0.28)
_WAVE_WIDTH = (0.035, 0.012, 0.014, 0.014, 0.055)


def _rotation(own: np.random.Generator, spread: float) -> Reals:
    """A small random rotation; `spread` in radians."""
    x, y, z = own.normal(0, spread, 3)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = max(float(np.linalg.norm([x, y, z])), 1e-9)
    return np.asarray(np.eye(3) + np.sin(angle) / angle * skew + (1 - np.cos(angle)) / angle**2 * skew @ skew)


def _smooth(own: np.random.Generator, samples: int, scale: float) -> Reals:
    """(samples,) of unit spread that change over about `scale` samples."""
    knots = own.normal(0, 1.0, max(4, int(samples / scale) + 3))
    return np.interp(np.arange(samples), np.arange(len(knots)) * scale, knots)
