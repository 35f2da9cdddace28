"""What a data set holds, subject by subject: seconds of every activity, absent sensors, gaps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from sensors.gaps import gaps
from sensors.recording import UNLABELLED, DataSet


@dataclass(frozen=True)
class Gaps:
    """Of one modality: gaps, seconds missing in all, seconds of the longest."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def __add__(self, other: Gaps) -> Gaps:
        return Gaps(self.count + other.count, self.seconds + other.seconds, max(self.longest, other.longest))


@dataclass(frozen=True)
class SubjectSummary:
    """One subject. `activities` maps names to seconds; unlabelled time is under no name."""

    subject: str
    recordings: int
    seconds: float
    activities: dict[str, float]
    gaps: dict[str, Gaps]
    absent: tuple[str, ...]

    @property
    def unlabelled(self) -> float:
        return self.seconds - sum(self.activities.values())


def summary(dataset: DataSet, subject: str) -> SubjectSummary:
    """Read all of a subject's recordings, one at a time. Gaps are those that are left after reading."""
    count, seconds = 0, 0.0
    activities: Counter[str] = Counter()
    found: dict[str, Gaps] = {}
    for recording in dataset.recordings(subject):
        count, seconds = count + 1, seconds + recording.seconds
        for label, samples in zip(*np.unique(recording.labels, return_counts=True), strict=True):
            if label != UNLABELLED:
                activities[dataset.activities[int(label)]] += samples / recording.rate_hz
        for name, stream in recording.streams.items():
            missing = np.isnan(stream).sum(axis=1) > 0
            lengths = [(end - begin) / recording.rate_hz for begin, end in gaps(missing)]
            found[name] = found.get(name, Gaps()) + Gaps(len(lengths), sum(lengths), max(lengths, default=0.0))
    absent = tuple(m.name for m in dataset.modalities if m.name not in found)
    return SubjectSummary(subject, count, seconds, dict(activities), found, absent)
