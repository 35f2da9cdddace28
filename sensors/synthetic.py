"""A made-up data set for machines without recordings: made while it is read, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sensors.body import CATALOGUE, KINDS, PLACES, Wearer, rng_of
from sensors.recording import UNLABELLED, Floats, Modality, Recording

ACTIVITIES = (
    "lying",
    "sitting",
    "standing",
    "walking",
    "ascending_stairs",
    "cycling",
    "cycling_hard",
    "jogging",
    "running",
    "rope_jumping",
)
SENSORS = ("chest_acc", "wrist_acc", "wrist_gyro", "ankle_acc", "ankle_gyro", "ecg", "heart_rate")


class Synthetic:
    """Each subject does every activity in several bouts, in an order of their own, with unlabelled moves between.

    Inertial sensors at three places, two ECG leads, heart rate. cycling and cycling_hard look alike to inertial
    sensors and differ in effort, so the heart is a modality that few own and that knows what others do not.

    seed      everything follows from it
    gaps      fraction of samples lost in packets, per sensor
    """

    window_s = 2.56
    overlap = 0.5

    def __init__(
        self,
        *,
        subjects: int = 8,
        seed: int = 0,
        rate_hz: float = 50.0,
        activities: Sequence[str] = ACTIVITIES,
        sensors: Sequence[str] = SENSORS,
        bouts: int = 3,
        bout_s: float = 32.0,
        pause_s: float = 2.0,
        gaps: float = 0.0,
        name: str = "synthetic",
    ) -> None:
        self.name, self.rate_hz, self.seed = name, rate_hz, seed
        self.activities = tuple(activities)
        self.modalities = tuple(_modality(sensor, rate_hz) for sensor in sensors)
        self._subjects = tuple(str(n + 1) for n in range(subjects))
        self._bouts, self._bout_s, self._pause_s, self._gaps = bouts, bout_s, pause_s, gaps

    def subjects(self) -> tuple[str, ...]:
        return self._subjects

    def recordings(self, subject: str) -> Iterator[Recording]:
        """One recording: all bouts on one clock. KeyError for a subject that is not there."""
        if subject not in self._subjects:
            raise KeyError(subject)
        wearer, own = Wearer(self.seed, subject), rng_of(self.seed, subject, "day")
        labels: list[npt.NDArray[np.int64]] = []
        pieces: dict[str, list[Floats]] = {m.name: [] for m in self.modalities}
        for number in range(self._bouts):
            for label in own.permutation(len(self.activities)):
                activity = CATALOGUE[self.activities[label]]
                pause = round(own.uniform(0.5, 1.5) * self._pause_s * self.rate_hz)
                samples = pause + round(self._bout_s * self.rate_hz)
                bout = wearer.bout(activity, number, self.rate_hz, samples)
                here = np.full(samples, label, np.int64)
                here[:pause] = UNLABELLED
                labels.append(here)
                for name in pieces:
                    pieces[name].append(_seen(bout, name))
        streams = {name: np.concatenate(parts) for name, parts in pieces.items()}
        for name, stream in streams.items():
            _lose(stream, self._gaps, rng_of(self.seed, subject, name, "loss"))
        yield Recording(subject, self.rate_hz, np.concatenate(labels), streams)


def _modality(sensor: str, rate_hz: float) -> Modality:
    if sensor == "ecg":
        return Modality(sensor, ("lead_1", "lead_2"), "mV", rate_hz)
    if sensor == "heart_rate":
        return Modality(sensor, ("bpm",), "bpm", rate_hz)
    place, _, kind = sensor.rpartition("_")
    if place not in PLACES or kind not in KINDS:
        raise ValueError(f"sensor {sensor!r}: expected ecg, heart_rate or one of {PLACES} with one of {tuple(KINDS)}")
    return Modality(sensor, tuple("xyz"), KINDS[kind], rate_hz)


def _seen(bout: Any, sensor: str) -> Floats:
    """(samples, channels) of one sensor during one bout."""
    if sensor == "ecg":
        seen = bout.ecg()
    elif sensor == "heart_rate":
        seen = np.round(bout.heart_rate())[:, None]
    else:
        seen = bout.see(*sensor.rsplit("_", 1))
    return np.asarray(seen, np.float32)


def _lose(stream: Floats, fraction: float, own: np.random.Generator) -> None:
    """NaN for packets of 1 to 20 samples, until about `fraction` is gone."""
    packets = round(fraction * len(stream) / 10.5)
    for start, length in zip(own.integers(0, len(stream), packets), own.integers(1, 21, packets), strict=True):
        stream[start : start + length] = np.nan
