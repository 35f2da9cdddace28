"""What windows promise: no border inside, nothing lost but gaps, positions by time, scaling that adds up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.recording import UNLABELLED, Modality, Recording
from sensors.scaling import Scaling, merge, sums
from sensors.splits import between, groups, leave_one_out, share, split
from sensors.windows import Windows, cut

RATE = 10.0


class Made:
    """A data set held in memory; `clock` numbers the samples of each subject, so windows tell where they came from."""

    name = "made"
    rate_hz = RATE
    window_s = 1.0
    overlap = 0.5
    modalities: tuple[Modality, ...] = (
        Modality("clock", ("index",), "samples", RATE),
        Modality("noise", ("a", "b"), "1", RATE),
    )
    activities: tuple[str, ...] = ("zero", "one", "two")

    def __init__(self, made: dict[str, list[list[int]]]) -> None:
        self._made = made

    def subjects(self) -> tuple[str, ...]:
        return tuple(self._made)

    def recordings(self, subject: str) -> Iterator[Recording]:
        at, noise = 0, np.random.default_rng(len(subject))
        for labels in self._made[subject]:
            index = np.arange(at, at + len(labels), dtype=np.float32)[:, None]
            streams = {"clock": index, "noise": noise.normal(3, 2, (len(labels), 2)).astype(np.float32)}
            yield Recording(subject, RATE, np.array(labels, np.int64), streams)
            at += len(labels)

    def all(self) -> Iterator[Recording]:
        for subject in self.subjects():
            yield from self.recordings(subject)


stretches = st.lists(st.tuples(st.sampled_from([UNLABELLED, 0, 1, 2]), st.integers(1, 60)), max_size=6)
recordings = st.lists(stretches.map(lambda runs: [label for label, n in runs for _ in range(n)]), max_size=4)
data_sets = st.dictionaries(st.sampled_from(["s", "tt", "uuu"]), recordings, max_size=3).map(Made)


@given(data_sets, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
@settings(deadline=None)
def test_windows_are_those_that_a_loop_over_samples_would_cut(made: Made, window_s: float, overlap: float) -> None:
    expected = []
    samples = round(window_s * RATE)
    step = max(1, round(samples * (1 - overlap)))
    for subject in made.subjects():
        for recording in made.recordings(subject):
            run = 0
            for t, label in enumerate(recording.labels):
                run = run + 1 if t and label == recording.labels[t - 1] else 1
                if label != UNLABELLED and run >= samples and (run - samples) % step == 0:
                    first = t - samples + 1
                    expected.append((subject, int(label), recording.streams["clock"][first : t + 1, 0].tolist()))
    windows = cut(made.all(), made, window_s, overlap)
    found = [
        (windows.subjects[windows.subject[n]], int(windows.y[n]), windows.x["clock"][n, 0].tolist())
        for n in range(len(windows))
    ]
    assert found == expected
    assert all(x.dtype == np.float32 for x in windows.x.values())


@given(data_sets)
@settings(deadline=None)
def test_positions_rise_with_time_and_stay_below_one(made: Made) -> None:
    windows = cut(made.all(), made)
    assert np.all((windows.position >= 0) & (windows.position < 1) & (windows.stop <= 1 + 1e-6))
    assert np.all(windows.stop > windows.position)
    for mine in groups(windows):
        assert np.all(np.diff(windows.x["clock"][mine, 0, 0]) > 0)
        assert np.all(np.diff(windows.position[mine]) > 0)


def test_a_window_with_a_gap_is_dropped_and_counted() -> None:
    made = Made({"s": [[0] * 30]})
    (recording,) = made.recordings("s")
    recording.streams["noise"][12, 1] = np.nan
    windows = cut([recording], made, overlap=0.0)
    assert windows.x["clock"][:, 0, 0].tolist() == [0.0, 20.0]
    assert windows.dropped == 1
    assert len(cut([recording], made, overlap=0.0, modalities=["clock"])) == 3


def test_a_modality_that_somebody_lacks_is_left_out_unless_it_was_asked_for() -> None:
    made = Made({"s": [[0] * 20]})
    (recording,) = made.recordings("s")
    less = Recording("t", RATE, recording.labels, {"clock": recording.streams["clock"]})
    assert list(cut([recording, less], made).x) == ["clock"]
    with pytest.raises(ValueError, match="subject t has no modality 'noise'"):
        cut([recording, less], made, modalities=["clock", "noise"])


@pytest.mark.parametrize(("window_s", "overlap"), [(0.0, 0.5), (1.0, 1.0), (1.0, -0.1)])
def test_impossible_windows_are_refused(window_s: float, overlap: float) -> None:
    with pytest.raises(ValueError, match="windows of"):
        cut([], Made({}), window_s, overlap)


@given(data_sets, st.sampled_from([(16 / 24, 4 / 24), (0.5, 0.25), (0.6, 0.0)]))
@settings(deadline=None)
def test_no_sample_is_in_two_parts_of_a_split(made: Made, fractions: tuple[float, float]) -> None:
    windows = cut(made.all(), made)
    held = windows.subjects[:1]
    parts = split(windows, held, *fractions)
    seen: set[tuple[str, float]] = set()
    for part in (parts.train, parts.validation, parts.test, parts.held_out):
        mine = {(part.subjects[part.subject[n]], t) for n in range(len(part)) for t in part.x["clock"][n, 0].tolist()}
        assert not mine & seen
        seen |= mine
    assert set(parts.held_out.subject) <= {0}
    assert all(windows.subjects[s] not in held for part in (parts.train, parts.test) for s in part.subject)


@given(data_sets, st.integers(1, 5))
@settings(deadline=None)
def test_shares_of_a_subject_are_contiguous_disjoint_and_even(made: Made, of: int) -> None:
    windows = cut(made.all(), made, overlap=0.0)
    shares = [share(windows, k, of) for k in range(of)]
    assert sum(map(len, shares)) == len(windows)
    for mine in groups(windows):
        subject, label = windows.subject[mine[0]], windows.y[mine[0]]
        clocks = [s.x["clock"][(s.subject == subject) & (s.y == label), 0, 0] for s in shares]
        assert np.array_equal(np.concatenate(clocks), windows.x["clock"][mine, 0, 0])
        assert max(map(len, clocks)) - min(map(len, clocks)) <= 1


@given(data_sets, st.integers(2, 4))
@settings(deadline=None)
def test_shares_of_overlapping_windows_have_no_sample_in_common(made: Made, of: int) -> None:
    windows = cut(made.all(), made, overlap=0.7)
    seen: set[tuple[int, float]] = set()
    for k in range(of):
        mine = share(windows, k, of)
        held = {(int(mine.subject[n]), t) for n in range(len(mine)) for t in mine.x["clock"][n, 0].tolist()}
        assert not held & seen
        seen |= held


def test_a_split_cuts_each_class_at_its_own_sixteenth_of_twenty_four() -> None:
    made = Made({"s": [[0] * 240 + [1] * 480]})
    parts = split(cut(made.all(), made, overlap=0.0))
    assert parts.train.x["clock"][parts.train.y == 0].max() == 159
    assert parts.train.x["clock"][parts.train.y == 1].max() == 240 + 319
    assert len(parts.train) == 48 and len(parts.validation) == 12 and len(parts.test) == 12
    assert len(between(cut(made.all(), made, overlap=0.0), 0.5, 1.0)) == 36


def test_leaving_one_subject_out_holds_out_each_in_turn() -> None:
    made = Made({"s": [[0] * 50], "tt": [[1] * 50]})
    assert {s: set(p.held_out.subject) for s, p in leave_one_out(cut(made.all(), made))} == {"s": {0}, "tt": {1}}


def test_an_unknown_held_out_subject_is_named() -> None:
    with pytest.raises(ValueError, match="cannot hold out \\['nobody'\\]"):
        split(cut([], Made({})), ["nobody"])


@given(data_sets, st.integers(1, 4))
@settings(deadline=None)
def test_scaling_of_merged_sums_is_the_scaling_of_everything(made: Made, of: int) -> None:
    windows = cut(made.all(), made, overlap=0.0)
    merged = Scaling.of(merge(sums(share(windows, k, of)) for k in range(of)))
    whole = Scaling.of(sums(windows))
    assert merged.center.keys() == whole.center.keys()
    for name in whole.center:
        assert np.allclose(merged.center[name], whole.center[name]) and np.allclose(
            merged.width[name], whole.width[name]
        )


def test_scaled_windows_have_zero_mean_and_unit_width_and_a_still_channel_stays_finite() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1000.0, 3.0, (50, 2, 20)).astype(np.float32)
    x[:, 1] = 7.0
    none = np.zeros(50, np.int64)
    windows = Windows({"m": x}, none, none, np.linspace(0, 0.9, 50, dtype=np.float32), ("s",))
    scaled = Scaling.of(sums(windows)).apply(windows).x["m"]
    assert scaled.dtype == np.float32
    assert abs(scaled[:, 0].mean()) < 1e-3 and abs(scaled[:, 0].std() - 1) < 1e-3
    assert np.all(scaled[:, 1] == 0.0)
