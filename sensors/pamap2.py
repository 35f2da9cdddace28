"""PAMAP2 Physical Activity Monitoring (UCI 231): three inertial units and a heart-rate belt, 12 activities.

Reiss, Stricker: Introducing a new benchmarked dataset for activity monitoring, ISWC 2012. `Protocol/subject10N.dat`, 54
space-separated columns at 100 Hz: time, activity, heart rate, then 17 columns each of hand, chest and ankle unit.
"""

from __future__ import annotations

from pathlib import Path

from sensors.recording import UNLABELLED, Modality
from sensors.table_set import Layout, TableSet

RATE_HZ = 100.0
KEEP = 3  # 100 to 33.3 Hz, every third sample
UNITS = {"hand": 3, "chest": 20, "ankle": 37}  # first column of each unit
# Within a unit: temperature, 16 g accelerometer, 6 g accelerometer (saturates: left out), gyroscope, magnetometer,
# orientation (invalid in this recording: left out).
KINDS = {"acc": (1, "m/s2"), "gyro": (7, "rad/s"), "mag": (10, "uT")}
ACTIVITIES = {
    1: "lying",
    2: "sitting",
    3: "standing",
    4: "walking",
    5: "running",
    6: "cycling",
    7: "nordic_walking",
    12: "ascending_stairs",
    13: "descending_stairs",
    16: "vacuum_cleaning",
    17: "ironing",
    24: "rope_jumping",
}
TRANSIENT = 0

_SENSORS = {
    f"{unit}_{kind}": (first + offset, measure)
    for unit, first in UNITS.items()
    for kind, (offset, measure) in KINDS.items()
}

LAYOUT = Layout(
    name="pamap2",
    pattern=r"subject(1\d\d)\.dat",
    expected="files like Protocol/subject101.dat",
    width=54,
    delimiter=" ",
    rate_hz=RATE_HZ,
    keep=KEEP,
    modalities=(
        *(Modality(name, tuple("xyz"), measure, RATE_HZ / KEEP) for name, (_, measure) in _SENSORS.items()),
        Modality("heart_rate", ("bpm",), "bpm", RATE_HZ / KEEP),
    ),
    columns={name: (c, c + 1, c + 2) for name, (c, _) in _SENSORS.items()} | {"heart_rate": (2,)},
    activities=tuple(ACTIVITIES.values()),
    codes={TRANSIENT: UNLABELLED} | {code: index for index, code in enumerate(ACTIVITIES)},
    label=1,
    time=0,
    window_s=5.12,
    overlap=0.5,
    held={"heart_rate": 5.0},
    skip="/Optional/",
)


class Pamap2(TableSet):
    """PAMAP2's protocol recordings at 33.3 Hz; the optional ones are left out."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, LAYOUT)
