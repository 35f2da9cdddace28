"""What streams promise: windows as from the recording, in a bounded ring; replays on time, stoppable."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.recording import UNLABELLED, Recording
from sensors.replay import ReplaySource
from sensors.stream import Samples, Source, WindowRing
from sensors.synthetic import Synthetic
from sensors.windows import Windows, cut
from tests.test_sensors_windows import RATE, Made, data_sets

FAST = math.inf


def pieces(source: Source) -> Iterator[Samples]:
    """Everything from an opened source until it ends."""
    while not source.ended:
        samples = source.read(1.0)
        if samples is not None:
            yield samples


def streamed(made: Made, subject: str, capacity: int = 4096, piece_s: float = 0.2, **part: object) -> WindowRing:
    ring = WindowRing(made.modalities, RATE, made.window_s, made.overlap, capacity=capacity, subject=subject)
    source = ReplaySource(made, subject, speed=FAST, piece_s=piece_s, **part)  # type: ignore[arg-type]
    source.open()
    for samples in pieces(source):
        ring.push(samples)
    ring.flush()
    return ring


def same(a: Windows, b: Windows) -> None:
    assert a.y.tolist() == b.y.tolist() and a.dropped == b.dropped
    for name in a.x:
        assert np.array_equal(a.x[name], b.x[name])
    assert np.allclose(a.position, b.position) and np.allclose(a.stop, b.stop)


@given(data_sets, st.sampled_from([0.1, 0.2, 0.7, 3.0]))
@settings(deadline=None)
def test_a_replayed_recording_gives_the_windows_that_are_cut_from_it(made: Made, piece_s: float) -> None:
    for subject in made.subjects():
        same(streamed(made, subject, piece_s=piece_s).windows(), cut(made.recordings(subject), made))


def test_gaps_drop_the_same_windows_in_a_stream_as_in_a_recording() -> None:
    made = Synthetic(subjects=1, activities=("walking", "lying"), bouts=1, bout_s=20.0, gaps=0.01)
    ring = WindowRing(made.modalities, made.rate_hz, made.window_s, made.overlap)
    source = ReplaySource(made, "1", speed=FAST, piece_s=0.33)
    source.open()
    for samples in pieces(source):
        ring.push(samples)
    ring.flush()
    expected = cut(made.recordings("1"), made)
    assert expected.dropped > 0 and len(expected) > 0
    same(ring.windows(), expected)


def test_the_ring_keeps_the_newest_windows() -> None:
    made = Made({"s": [[0] * 200]})
    everything, ring = cut(made.all(), made), streamed(made, "s", capacity=7)
    kept = ring.windows()
    assert len(kept) == 7
    assert np.array_equal(kept.x["clock"], everything.x["clock"][-7:])
    assert np.allclose(kept.position, everything.position[-7:])


def test_pending_samples_do_not_pile_up() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0)
    for n in range(500):
        ring.push(_piece(n * 1.0, 10, label=0))
    assert len(ring._labels) <= 4 * 10


def _piece(at: float, n: int, label: int = UNLABELLED, modality: str | None = None) -> Samples:
    index = np.arange(n, dtype=np.float32) + np.float32(round(at * RATE))
    streams = {"clock": index[:, None], "noise": np.zeros((n, 2), np.float32)}
    return Samples(at, RATE, streams if modality is None else {modality: streams[modality]}, np.full(n, label))


def test_modalities_that_arrive_apart_are_put_together_by_time() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0)
    for n in range(6):
        ring.push(_piece(n * 0.5, 5, 1, "clock"))
        if n % 2:
            ring.push(_piece((n - 1) * 0.5, 10, 1, "noise"))
    ring.flush()
    assert ring.windows().x["clock"][:, 0, 0].tolist() == [0.0, 10.0, 20.0]
    assert ring.refused == 0


def test_jitter_of_arrival_times_neither_tears_nor_shifts_windows() -> None:
    ring, rng = WindowRing(Made.modalities, RATE, 1.0), np.random.default_rng(1)
    for n in range(40):
        ring.push(
            Samples(1e9 + n * 0.5 + rng.uniform(-0.08, 0.08), RATE, _piece(n * 0.5, 5).streams, np.zeros(5, np.int64))
        )
    ring.flush()
    assert ring.windows().x["clock"][:, 0, 0].tolist() == [float(n) for n in range(0, 200, 10)]


def test_a_sensor_that_dies_costs_its_windows_and_does_not_stop_the_ring() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0)
    for n in range(20):
        ring.push(_piece(float(n), 10, 0, None if n < 5 else "clock"))
    ring.flush()
    assert len(ring.windows()) == 5 and ring.dropped == 15
    assert len(ring._labels) <= 10 * 10
    newest = ring.latest()
    assert newest is not None and list(newest[2]) == ["clock"]


def test_what_comes_too_late_or_does_not_fit_is_refused_and_counted() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0)
    ring.push(_piece(5.0, 20, 0))
    before = ring.windows()
    ring.push(_piece(5.0, 10, 0))
    assert ring.refused == 2  # once per modality
    ring.push(Samples(7.0, RATE, {"clock": np.zeros((10, 3), np.float32)}))
    ring.push(Samples(7.0, RATE, {"other": np.zeros((10, 1), np.float32)}))
    ring.push(Samples(math.nan, RATE, _piece(0.0, 5).streams))
    ring.push(Samples(7.0, RATE, _piece(0.0, 5).streams, np.zeros(4, np.int64)))
    ring.push(Samples(7.0, RATE, {}))
    assert ring.refused == 7
    same(ring.windows(), before)


def test_a_clock_that_is_set_anew_starts_a_new_stretch() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0)
    for start in (1000.0, 0.0, 1e9):
        ring.push(_piece(start, 25, 2))
    ring.flush()
    assert len(ring.windows()) == 6 and ring.refused == 0


def test_another_rate_than_the_rings_is_an_error_that_says_so() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0)
    with pytest.raises(ValueError, match="samples at 40 Hz for windows at 10 Hz: resample them first"):
        ring.push(Samples(0.0, 40.0, _piece(0.0, 5).streams))


def test_an_annotation_within_the_rings_patience_labels_its_interval() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0, patience_s=5.0)
    for n in range(6):
        ring.push(_piece(100.0 + n, 10))
    ring.annotate(102.0, 104.0, 1)
    for n in range(6, 20):
        ring.push(_piece(100.0 + n, 10))
    ring.annotate(100.0, 110.0, 2)  # by now it is too late for all of it
    ring.flush()
    windows = ring.windows()
    assert windows.y.tolist() == [1, 1]
    assert windows.x["clock"][:, 0, 0].tolist() == [1020.0, 1030.0]


def test_the_latest_stretch_is_there_for_inference_whatever_its_label() -> None:
    ring = WindowRing(Made.modalities, RATE, 1.0)
    ring.push(_piece(50.0, 5))
    assert ring.latest() is None
    ring.push(_piece(50.5, 12))
    newest = ring.latest()
    assert newest is not None
    start, end, x = newest
    assert math.isclose(start, 50.7) and math.isclose(end, 51.7)
    assert x["clock"].shape == (1, 1, 10) and x["clock"][0, 0, -1] == 516.0


@given(data_sets)
@settings(max_examples=30, deadline=None)
def test_parts_of_a_replay_together_play_every_labelled_sample_once(made: Made) -> None:
    for subject in made.subjects():
        played: list[float] = []
        for part in ((0.0, 0.5), (0.5, 1.0)):
            source = ReplaySource(made, subject, part=part, speed=FAST)
            source.open()
            played += [t for samples in pieces(source) for t in samples.streams["clock"][:, 0].tolist()]
        labelled = [t for r in made.recordings(subject) for t in r.streams["clock"][r.labels != UNLABELLED, 0].tolist()]
        assert sorted(played) == labelled


def test_a_replay_of_chosen_activities_plays_only_those() -> None:
    made = Made({"s": [[0] * 30 + [1] * 30 + [2] * 30]})
    source = ReplaySource(made, "s", ["noise"], activities=[2], speed=FAST)
    source.open()
    played = list(pieces(source))
    assert {int(label) for samples in played for label in samples.labels} == {2}
    assert all(list(samples.streams) == ["noise"] for samples in played)


def test_a_replay_keeps_its_pace_without_drift() -> None:
    made = Made({"s": [[0] * 60]})
    source = ReplaySource(made, "s", speed=5.0, piece_s=0.2)
    source.open()
    began, late = time.monotonic(), []
    for samples in pieces(source):
        late.append(time.monotonic() - began - (samples.time + 0.2) / 5.0)
        time.sleep(0.02)  # a reader that takes half of the time
    assert len(late) == 30
    assert min(late) > -0.002
    assert min(late[-10:]) < 0.05  # a pause between pieces instead of due times would be 0.6 s behind by now


def test_the_last_piece_of_a_recording_does_not_wait_until_the_next_one_is_loaded() -> None:
    loaded: list[int] = []

    class Slow(Made):
        def recordings(self, subject: str) -> Iterator[Recording]:
            for n, recording in enumerate(super().recordings(subject)):
                loaded.append(n)
                yield recording

    source = ReplaySource(Slow({"s": [[0] * 4, [1] * 4]}), "s", speed=FAST, piece_s=0.2)
    source.open()
    for _ in range(2):
        taken = source.read()
        assert taken is not None and set(taken.labels) == {0} and loaded == [0]
    assert source.upcoming is not None and loaded == [0, 1]
    assert [set(samples.labels) for samples in pieces(source)] == [{1}, {1}]
    assert source.ended


def test_closing_a_replay_ends_a_read_that_waits() -> None:
    source = ReplaySource(Made({"s": [[0] * 100]}), "s", speed=0.01)
    source.open()
    threading.Timer(0.1, source.close).start()
    began = time.monotonic()
    assert source.read() is None and source.ended
    assert time.monotonic() - began < 5.0
    assert source.read() is None


def test_a_read_that_times_out_loses_nothing() -> None:
    source = ReplaySource(Made({"s": [[0] * 4]}), "s", speed=2.0)
    source.open()
    assert source.read(0.001) is None and not source.ended
    assert [len(s) for s in pieces(source)] == [2, 2]


def test_a_looped_replay_goes_on_in_time() -> None:
    source = ReplaySource(Made({"s": [[0] * 10]}), "s", speed=FAST, piece_s=1.0, loop=True)
    source.open()
    times = [samples.time for samples, _ in zip(pieces(source), range(4), strict=False)]
    assert np.all(np.diff(times) >= 1.0)


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_an_impossible_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        ReplaySource(Made({}), "s", speed=speed)
