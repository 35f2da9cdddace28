"""Writes made-up recordings in the original file formats of PAMAP2 and MHEALTH, with everything that is odd in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sensors import mhealth, pamap2
from sensors.body import rng_of
from sensors.recording import UNLABELLED, Recording
from sensors.synthetic import Synthetic

# The data sets' names for what our made-up people can do.
_AS_MADE = {"climbing_stairs": "ascending_stairs", "arm_elevation": "arm_raising", "jumping": "rope_jumping"}
_SATURATION = 6 * 9.81  # m/s2, of PAMAP2's second accelerometer
_BEAT_ROWS = 11  # PAMAP2's belt reports about nine times a second


def write_pamap2(
    folder: Path,
    *,
    subjects: int = 3,
    seed: int = 0,
    bout_s: float = 30.0,
    bouts: int = 2,
    gaps: float = 0.004,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """`Protocol/subject101.dat` and so on below `folder`.

    Heart rate in one row of eleven, packets of all of a unit's columns lost (`gaps` of the rows), the invalid
    orientation, the second accelerometer saturated, transient rows between activities.
    """
    sensors = [f"{unit}_{kind}" for unit in pamap2.UNITS for kind in pamap2.KINDS]
    made = Synthetic(
        subjects=subjects,
        seed=seed,
        rate_hz=pamap2.RATE_HZ,
        activities=[*pamap2.ACTIVITIES.values()],
        sensors=[*sensors, "heart_rate"],
        bouts=bouts,
        bout_s=bout_s,
    )
    written = []
    for n, subject in enumerate(made.subjects()):
        (recording,) = made.recordings(subject)
        table = _pamap2_table(recording, rng_of(seed, subject, "packets"), gaps)
        form = " ".join(["%.2f", "%d", *["%g"] * 52])
        written.append(_write(folder / "Protocol" / f"subject{101 + n}.dat", table, form, "NaN"))
        progress(len(written))
    return written


def _pamap2_table(recording: Recording, own: np.random.Generator, gaps: float) -> npt.NDArray[np.float64]:
    rows = len(recording.labels)
    table = np.full((rows, 54), np.nan)
    table[:, 0] = 5.0 + np.arange(rows) / pamap2.RATE_HZ
    codes = np.array([*pamap2.ACTIVITIES, pamap2.TRANSIENT])  # index -1 is the last
    table[:, 1] = codes[recording.labels]
    table[::_BEAT_ROWS, 2] = recording.streams["heart_rate"][::_BEAT_ROWS, 0]
    for unit, first in pamap2.UNITS.items():
        table[:, first] = 30 + np.cumsum(own.normal(0, 1e-3, rows))
        for kind, (offset, _) in pamap2.KINDS.items():
            table[:, first + offset : first + offset + 3] = recording.streams[f"{unit}_{kind}"]
        table[:, first + 4 : first + 7] = np.clip(table[:, first + 1 : first + 4], -_SATURATION, _SATURATION)
        table[:, first + 13 : first + 17] = (1.0, 0.0, 0.0, 0.0)
        packets = round(gaps * rows / 5)
        for start, length in zip(own.integers(0, rows, packets), own.integers(1, 10, packets), strict=True):
            table[start : start + length, first : first + 17] = np.nan
    return table


def write_mhealth(
    folder: Path,
    *,
    subjects: int = 3,
    seed: int = 0,
    bout_s: float = 30.0,
    bouts: int = 2,
    gaps: float = 0.0,
    absent: tuple[str, ...] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """`MHEALTHDATASET/mHealth_subject1.log` and so on below `folder`, with null rows between activities.

    absent    modalities whose columns are all nan; `gaps` of the other rows are lost, a modality at a time
    """
    made = Synthetic(
        subjects=subjects,
        seed=seed,
        rate_hz=mhealth.RATE_HZ,
        activities=[_AS_MADE.get(a, a) for a in mhealth.ACTIVITIES],
        sensors=[*mhealth.SENSORS],
        bouts=bouts,
        bout_s=bout_s,
        gaps=gaps,
    )
    written = []
    for subject in made.subjects():
        (recording,) = made.recordings(subject)
        table = np.full((len(recording.labels), 24), np.nan)
        for name, (first, channels, unit) in mhealth.SENSORS.items():
            if name not in absent:
                stream = recording.streams[name]
                table[:, first : first + len(channels)] = np.degrees(stream) if unit == "deg/s" else stream
        table[:, 23] = np.where(recording.labels == UNLABELLED, mhealth.NULL, recording.labels + 1)
        form = "\t".join([*["%.5g"] * 23, "%d"])
        written.append(_write(folder / "MHEALTHDATASET" / f"mHealth_subject{subject}.log", table, form, "nan"))
        progress(len(written))
    return written


def _write(file: Path, table: npt.NDArray[np.float64], form: str, missing: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="\n") as out:
        for row in table.tolist():
            out.write((form % tuple(row)).replace("nan", missing) + "\n")
    return file
