"""The made-up recordings: the same for the same seed, plausible, learnable by each sensor to its own degree."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import pytest

from sensors.recording import UNLABELLED, Floats
from sensors.splits import split
from sensors.synthetic import Synthetic
from sensors.windows import Windows, cut


@pytest.fixture(scope="module")
def made() -> tuple[Synthetic, Windows]:
    data = Synthetic(subjects=6)
    return data, cut((r for s in data.subjects() for r in data.recordings(s)), data)


def _digest(data: Synthetic) -> int:
    (recording,) = data.recordings("2")
    return zlib.crc32(b"".join(np.round(s * 1e3).astype(np.int64).tobytes() for s in recording.streams.values()))


def test_the_same_seed_gives_the_same_recordings_in_another_process() -> None:
    code = "from tests.test_sensors_synthetic import _digest, Synthetic; print(_digest(Synthetic(seed=3, bouts=1)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == _digest(Synthetic(seed=3, bouts=1))
    assert _digest(Synthetic(seed=4, bouts=1)) != _digest(Synthetic(seed=3, bouts=1))


def test_streams_are_physical(made: tuple[Synthetic, Windows]) -> None:
    data, windows = made
    still = np.linalg.norm(windows.x["chest_acc"][windows.y == data.activities.index("standing")], axis=1)
    assert 9.4 < np.median(still) < 10.4  # m/s2
    rate = windows.x["heart_rate"][:, 0].mean(axis=1)
    lying, running = (rate[windows.y == data.activities.index(a)].mean() for a in ("lying", "running"))
    assert 45 < lying < 95 and 130 < running < 200  # bpm
    one = windows.x["ecg"][windows.y == data.activities.index("lying")][:, 0]
    assert 0.5 < np.median(one.max(axis=1)) < 2.5  # mV
    assert windows.dropped == 0


def test_every_activity_returns_in_every_subject_with_unlabelled_moves_between(made: tuple[Synthetic, Windows]) -> None:
    data, windows = made
    (recording,) = data.recordings("1")
    assert set(recording.labels) == {UNLABELLED, *range(len(data.activities))}
    assert len({(s, y) for s, y in zip(windows.subject, windows.y, strict=True)}) == 6 * len(data.activities)


def _features(windows: Windows, modalities: list[str]) -> Floats:
    parts = []
    for x in (windows.x[m] for m in modalities):
        spectrum = np.abs(np.fft.rfft(x - x.mean(axis=2, keepdims=True), axis=2))[:, :, 1:24]
        parts += [x.mean(axis=2), x.std(axis=2), np.log(spectrum + 0.1).reshape(len(x), -1)]
    return np.concatenate(parts, axis=1)


def _accuracy(windows: Windows, modalities: list[str], classes: int) -> tuple[float, float]:
    """In-subject and held-out accuracy of ridge regression on spectra: a floor for what a network can learn."""
    parts = split(windows, windows.subjects[-2:])
    train = _features(parts.train, modalities)
    center, width = train.mean(axis=0), train.std(axis=0) + 1e-6

    def ready(x: Floats) -> Floats:
        return np.c_[(x - center) / width, np.ones(len(x))]

    a = ready(train)
    w = np.linalg.solve(a.T @ a + 30.0 * np.eye(a.shape[1]), a.T @ np.eye(classes)[parts.train.y])
    scores = [
        float(np.mean((ready(_features(p, modalities)) @ w).argmax(axis=1) == p.y))
        for p in (parts.test, parts.held_out)
    ]
    return scores[0], scores[1]


def test_all_sensors_together_are_learnable_and_new_people_are_harder(made: tuple[Synthetic, Windows]) -> None:
    data, windows = made
    inside, outside = _accuracy(windows, [m.name for m in data.modalities], len(data.activities))
    assert 0.75 < inside < 0.995 and 0.6 < outside < inside


def test_the_heart_alone_tells_much_more_than_chance_and_less_than_everything(made: tuple[Synthetic, Windows]) -> None:
    data, windows = made
    inside, outside = _accuracy(windows, ["ecg"], len(data.activities))
    assert 0.3 < outside < 0.9 and 0.35 < inside < 0.9


def test_lost_packets_leave_about_the_fraction_asked_for() -> None:
    (recording,) = Synthetic(subjects=1, bouts=1, gaps=0.02).recordings("1")
    lost = np.isnan(recording.streams["wrist_acc"]).any(axis=1).mean()
    assert 0.01 < lost < 0.03


def test_unknown_sensors_and_subjects_are_named() -> None:
    with pytest.raises(ValueError, match="sensor 'nose_acc'"):
        Synthetic(sensors=["nose_acc"])
    with pytest.raises(KeyError, match="9"):
        list(Synthetic().recordings("9"))
