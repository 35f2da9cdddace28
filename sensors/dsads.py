"""Daily and Sports Activities (UCI 256): five body units of 9 channels, 25 Hz, 19 activities, files of 5 s.

Altun, Barshan, Tuncel: Comparative study on classifying human activities with miniature inertial and magnetic sensors,
Pattern Recognition 43 (2010). Files are `data/aNN/pN/sNN.txt`, 125 rows of 45 comma-separated numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sensors.archive import Archive, Reading
from sensors.cache import Arrays, cached, key_of
from sensors.recording import DataError, Modality, Recording
from sensors.text import Form, parse_table

RATE_HZ = 25.0
ROWS, COLUMNS = 125, 45
FORM = Form(COLUMNS, ",")
UNITS = ("torso", "right_arm", "left_arm", "right_leg", "left_leg")
KINDS = (("acc", "m/s2"), ("gyro", "rad/s"), ("mag", "earth field"))
ACTIVITIES = (
    "sitting",
    "standing",
    "lying_on_back",
    "lying_on_right_side",
    "ascending_stairs",
    "descending_stairs",
    "standing_in_elevator",
    "moving_in_elevator",
    "walking_parking_lot",
    "walking_treadmill_flat",
    "walking_treadmill_inclined",
    "running_treadmill",
    "exercising_stepper",
    "exercising_cross_trainer",
    "cycling_horizontal",
    "cycling_vertical",
    "rowing",
    "jumping",
    "playing_basketball",
)
# Held-out subjects of the three folds; of the others segments 1-16 train, 17-20 validate, 21-24 test.
FOLDS = (("1", "2"), ("3", "4"), ("5", "6"))

_MAG = np.array([u * 9 + c for u in range(5) for c in (6, 7, 8)])


class Dsads:
    """DSADS as a data set. `units` makes a modality of every body unit (5 x 9 channels) or sensor (15 x 3)."""

    rate_hz = RATE_HZ
    window_s = 5.0
    overlap = 0.0
    activities: tuple[str, ...] = ACTIVITIES

    def __init__(self, path: Path, units: Literal["units", "sensors"] = "units") -> None:
        self.name = "dsads" if units == "units" else "dsads15"
        self.modalities, self._columns = _layout(units)
        self._archive = Archive(path, r"a(\d\d)/p(\d)/s(\d\d)\.txt", "files like data/a01/p1/s01.txt")
        self._members: dict[str, list[tuple[int, int, str]]] = {}
        for member, match in self._archive.members.items():
            activity, subject, segment = (int(group) for group in match.groups())
            if not 1 <= activity <= len(ACTIVITIES):
                raise DataError(path, f"{member}: activity {activity}, expected 1 to {len(ACTIVITIES)}")
            self._members.setdefault(str(subject), []).append((activity - 1, segment, member))

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted(self._members))

    def recordings(self, subject: str) -> Iterator[Recording]:
        """Contiguous segments joined, activity by activity. KeyError for a subject that is not there."""
        members = sorted(self._members[subject])
        key = key_of("dsads", self._archive.files([m for _, _, m in members]), subject)
        arrays = cached(key, lambda: self._parse(members))
        values, where = arrays["values"], arrays["where"]
        for activity in np.unique(where[:, 0]):
            mine = np.flatnonzero(where[:, 0] == activity)
            for piece in _contiguous(values[mine], where[mine, 1]):
                yield self._recording(subject, int(activity), int(where[mine[piece[0]], 1]), values[mine[piece]])

    def _parse(self, members: list[tuple[int, int, str]]) -> Arrays:
        """values (segments, 125, 45) float32, where (segments, 2): activity and segment number."""
        values = np.empty((len(members), ROWS, COLUMNS), np.float32)
        with self._archive.reading() as reading:
            for n, (_, _, member) in enumerate(members):
                values[n] = _segment(reading, member)
        return {"values": values, "where": np.array([m[:2] for m in members])}

    def _recording(self, subject: str, activity: int, segment: int, values: npt.NDArray[Any]) -> Recording:
        flat = values.reshape(-1, COLUMNS)
        streams = {m.name: np.ascontiguousarray(flat[:, self._columns[m.name]]) for m in self.modalities}
        return Recording(subject, RATE_HZ, np.full(len(flat), activity, np.int64), streams, segment)


def _layout(units: str) -> tuple[tuple[Modality, ...], dict[str, slice]]:
    """The modalities and each one's columns in the file."""
    modalities, columns = [], {}
    for u, unit in enumerate(UNITS):
        if units == "units":
            channels = tuple(f"{kind}_{axis}" for kind, _ in KINDS for axis in "xyz")
            modalities.append(Modality(unit, channels, ", ".join(measure for _, measure in KINDS), RATE_HZ))
            columns[unit] = slice(u * 9, u * 9 + 9)
            continue
        for k, (kind, measure) in enumerate(KINDS):
            modalities.append(Modality(f"{unit}_{kind}", tuple("xyz"), measure, RATE_HZ))
            columns[f"{unit}_{kind}"] = slice(u * 9 + k * 3, u * 9 + k * 3 + 3)
    return tuple(modalities), columns


def _segment(reading: Reading, member: str) -> npt.NDArray[np.float64]:
    table = parse_table(reading.read(member), FORM, reading.label(member))
    if len(table) != ROWS:
        raise DataError(reading.label(member), f"{len(table)} rows, expected {ROWS}", len(table))
    bad = np.argwhere(np.isnan(table))
    if len(bad):
        row, column = bad[0] + 1
        raise DataError(reading.label(member), f"column {column} is nan, expected a number", int(row))
    return table


def _contiguous(values: npt.NDArray[Any], segments: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Indices of the segments in time order, cut where one does not go on where the one before ended.

    A border is a break where a number is missing, or where most magnetometer channels step further than 99 % of the
    steps within the same activity. On subjects 1 to 6 these are 213 of 2,622 borders, 177 of them on stairs, which were
    climbed flight by flight; of 46,512 steps inside segments the rule would take 6 for breaks.
    """
    if len(values) == 1:
        return [np.array([0])]
    heading = values[:, :, _MAG]
    usual = np.quantile(np.abs(np.diff(heading, axis=1)), 0.99, axis=(0, 1)) + 1e-3
    step = np.median(np.abs(heading[1:, 0] - heading[:-1, -1]) / usual, axis=1)
    breaks = (step > 1.0) | (np.diff(segments) != 1)
    return np.split(np.arange(len(values)), np.flatnonzero(breaks) + 1)
