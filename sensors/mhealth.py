"""MHEALTH (UCI 319): chest accelerometer and ECG, inertial units at ankle and lower arm, 12 activities, 50 Hz.

Banos et al.: mHealthDroid, a novel framework for agile development of mobile health applications, IWAAL 2014. Files
`mHealth_subjectN.log`, 24 tab-separated columns, no clock.
"""

from __future__ import annotations

from pathlib import Path

from sensors.recording import UNLABELLED, Modality
from sensors.table_set import Layout, TableSet

RATE_HZ = 50.0
# Modality -> first column, channels, unit. The unit "local" is the data set's own word for its magnetometers'.
SENSORS = {
    "chest_acc": (0, tuple("xyz"), "m/s2"),
    "ecg": (3, ("lead_1", "lead_2"), "mV"),
    "ankle_acc": (5, tuple("xyz"), "m/s2"),
    "ankle_gyro": (8, tuple("xyz"), "deg/s"),
    "ankle_mag": (11, tuple("xyz"), "local"),
    "arm_acc": (14, tuple("xyz"), "m/s2"),
    "arm_gyro": (17, tuple("xyz"), "deg/s"),
    "arm_mag": (20, tuple("xyz"), "local"),
}
ACTIVITIES = (
    "standing",
    "sitting",
    "lying",
    "walking",
    "climbing_stairs",
    "waist_bends",
    "arm_elevation",
    "knees_bending",
    "cycling",
    "jogging",
    "running",
    "jumping",
)
NULL = 0

LAYOUT = Layout(
    name="mhealth",
    pattern=r"mHealth_subject(\d{1,2})\.log",
    expected="files like MHEALTHDATASET/mHealth_subject1.log",
    width=24,
    delimiter="\t",
    rate_hz=RATE_HZ,
    modalities=tuple(Modality(name, channels, unit, RATE_HZ) for name, (_, channels, unit) in SENSORS.items()),
    columns={name: tuple(range(first, first + len(channels))) for name, (first, channels, _) in SENSORS.items()},
    activities=ACTIVITIES,
    codes={NULL: UNLABELLED} | {index + 1: index for index in range(len(ACTIVITIES))},
    label=23,
    window_s=2.56,
    overlap=0.5,
)


class Mhealth(TableSet):
    """MHEALTH at its own 50 Hz."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, LAYOUT)
