"""Samples of any rate, with jitter and gaps, brought onto one grid: tick k is the moment k / rate since the epoch.

Between samples the value is interpolated linearly; slow values (heart rate) hold until the next. A faster sensor is
averaged over each tick's period, which keeps what lies above half the model's rate from folding into it. Nothing is
invented across a gap: a stretch ends there and another begins.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sensors.recording import Floats
from sensors.stream import JUMP_S

Times = npt.NDArray[np.float64]

HOLD_BELOW_HZ = 5.0
GAP_PERIODS = 3.5  # the sensor's periods without a sample that make a gap
GAP_S = 0.1  # the shortest gap, so that jitter of a fast sensor is none


class Resampler:
    """One modality's way to the grid of `rate_hz`, from a sensor of about `sensor_hz`.

    `late` counts samples that came after their time had passed, `gaps` the gaps so far.
    """

    def __init__(self, rate_hz: float, sensor_hz: float) -> None:
        self.late = self.gaps = 0
        self._rate = rate_hz
        self._hold = sensor_hz < HOLD_BELOW_HZ
        self._half = 0.5 / rate_hz if sensor_hz > 1.5 * rate_hz else 0.0
        self._gap = max(GAP_S, GAP_PERIODS / sensor_hz)
        self._times: Times = np.empty(0)
        self._values: Floats = np.empty((0, 0), np.float32)
        self._next = 0  # the tick to be made next in this stretch

    def push(self, times: Times, values: Floats) -> list[tuple[int, Floats]]:
        """Stretches that are ready: (first tick, (n, channels) values). `times` (n,), `values` (n, channels).

        Samples with a missing value are left out, so that they are gaps if there are many of them. A clock that was
        set back by more than JUMP_S begins anew.
        """
        whole = np.isfinite(values).all(axis=1) & np.isfinite(times)
        times, values = times[whole], values[whole]
        if len(times) and len(self._times) and times[-1] < self._times[-1] - JUMP_S:
            self.reset()
        last = self._times[-1] if len(self._times) else -math.inf
        ahead = times > np.maximum.accumulate(np.concatenate([[last], times]))[:-1] if len(times) else times > 0
        self.late += int((~ahead).sum())
        times, values = times[ahead], values[ahead]
        ready: list[tuple[int, Floats]] = []
        borders = np.flatnonzero(np.diff(times) > self._gap) + 1
        for part, row in zip(np.split(times, borders), np.split(values, borders), strict=True):
            if len(part):
                ready += self._extend(part, row)
        return ready

    def reset(self) -> None:
        """The sensor was away: what comes next is another stretch, even on a clock that was set back."""
        self._times, self._values = np.empty(0), np.empty((0, 0), np.float32)

    def _extend(self, times: Times, values: Floats) -> list[tuple[int, Floats]]:
        if len(self._times) and times[0] - self._times[-1] <= self._gap:
            self._times = np.concatenate([self._times, times])
            self._values = np.concatenate([self._values, values])
        else:
            self.gaps += bool(len(self._times))
            self._times, self._values = times, values
            self._next = math.ceil((times[0] + self._half) * self._rate - 1e-6)
        end = math.floor((self._times[-1] - self._half) * self._rate + 1e-6) + 1
        if end <= self._next:
            return []
        ticks = np.arange(self._next, end) / self._rate
        made = self._at(ticks)
        first, self._next = self._next, end
        # What later ticks can still reach back to.
        keep = max(0, int(np.searchsorted(self._times, end / self._rate - self._half, side="right")) - 1)
        self._times, self._values = self._times[keep:], self._values[keep:]
        return [(first, made)]

    def _at(self, ticks: Times) -> Floats:
        if self._hold:
            held = np.searchsorted(self._times, ticks + 1e-6, side="right") - 1
            slow: Floats = self._values[np.clip(held, 0, None)]
            return slow
        if self._half and len(self._times) > 1:
            areas = self._area(ticks + self._half) - self._area(ticks - self._half)
            return (areas / (2 * self._half)).astype(np.float32)
        columns = [np.interp(ticks, self._times, column) for column in self._values.T]
        return np.stack(columns, axis=1).astype(np.float32)

    def _area(self, at: Times) -> npt.NDArray[np.float64]:
        """Integral of the interpolated samples from the first one to each moment: (n, channels)."""
        t, v = self._times, self._values.astype(np.float64)
        steps = np.diff(t)[:, None]
        total = np.concatenate([np.zeros((1, v.shape[1])), np.cumsum((v[1:] + v[:-1]) / 2 * steps, axis=0)])
        at = np.clip(at, t[0], t[-1])
        i = np.clip(np.searchsorted(t, at, side="right") - 1, 0, len(t) - 2)
        part = (at - t[i])[:, None]
        slope = (v[i + 1] - v[i]) / steps[i]
        area: npt.NDArray[np.float64] = total[i] + v[i] * part + slope * part**2 / 2
        return area
