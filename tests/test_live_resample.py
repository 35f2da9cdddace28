"""Samples of any rate onto the model's grid: what was sensed is kept, what was not is not invented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.pace import Pace
from sensors.resample import Resampler

START = 1_700_000_000.0


def pushed(
    resampler: Resampler, times: np.ndarray, values: np.ndarray, sizes: list[int]
) -> list[tuple[int, np.ndarray]]:
    """Stretches made of the samples, handed in pieces of these sizes, the rest at once."""
    made, at = [], 0
    for size in [*sizes, len(times)]:
        made += resampler.push(times[at : at + size], values[at : at + size])
        at += size
    return made


def joined(stretches: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    ticks = np.concatenate([np.arange(tick, tick + len(v)) for tick, v in stretches])
    return ticks, np.concatenate([v for _, v in stretches])


@given(
    st.floats(4.0, 400.0),
    st.floats(10.0, 100.0),
    st.lists(st.integers(0, 40), max_size=20),
    st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_a_straight_line_stays_one_at_any_rates_and_piece_sizes(
    sensor_hz: float, rate_hz: float, sizes: list[int], phase: float
) -> None:
    if sensor_hz < 5.0:
        sensor_hz = 5.0
    times = START + phase + np.arange(200) / sensor_hz
    values = np.stack([times - START, 3 - 2 * (times - START)], axis=1).astype(np.float32)
    ticks, made = joined(pushed(Resampler(rate_hz, sensor_hz), times, values, sizes))
    at = ticks / rate_hz - START
    assert made == pytest.approx(np.stack([at, 3 - 2 * at], axis=1), abs=2e-3)
    assert (np.diff(ticks) == 1).all()
    lost = (times[-1] - times[0]) * rate_hz - len(ticks)
    assert lost <= 3


@given(st.lists(st.integers(0, 30), max_size=20))
def test_how_samples_are_cut_into_pieces_changes_nothing(sizes: list[int]) -> None:
    rng = np.random.default_rng(3)
    times = START + np.cumsum(rng.uniform(0.008, 0.012, 300))
    values = rng.standard_normal((300, 3)).astype(np.float32)
    whole = joined(pushed(Resampler(25.0, 100.0), times, values, []))
    parts = joined(pushed(Resampler(25.0, 100.0), times, values, sizes))
    assert (whole[0] == parts[0]).all()
    assert parts[1] == pytest.approx(whole[1], abs=1e-5)


def test_nothing_is_invented_across_a_gap() -> None:
    times = START + np.concatenate([np.arange(50), 100 + np.arange(50)]) / 50
    stretches = Resampler(25.0, 50.0).push(times, np.ones((100, 1), np.float32))
    ticks, _ = joined(stretches)
    seconds = ticks / 25 - START
    assert len(stretches) == 2
    assert not ((seconds > 1.0) & (seconds < 2.0)).any()


def test_missing_values_are_gaps_and_single_ones_are_bridged() -> None:
    times, values = START + np.arange(100) / 50, np.arange(100, dtype=np.float32)[:, None].copy()
    values[10] = np.nan
    values[40:60] = np.nan
    resampler = Resampler(50.0, 50.0)
    stretches = resampler.push(times, values)
    assert [len(v) for _, v in stretches] == [40, 40] and resampler.gaps == 1
    assert stretches[0][1][10, 0] == pytest.approx(10.0, abs=1e-3)


def test_a_vibration_above_half_the_models_rate_does_not_fold_into_it() -> None:
    times = START + np.arange(2000) / 400
    hum = np.sin(2 * np.pi * 50 * times)[:, None].astype(np.float32)
    _, made = joined(Resampler(25.0, 400.0).push(times, hum))
    assert np.abs(made).max() < 0.05


def test_slow_values_hold_until_the_next() -> None:
    resampler = Resampler(10.0, 1.0)
    _, made = joined(resampler.push(START + np.arange(4.0), np.array([[60], [62], [61], [90]], np.float32)))
    assert made[:, 0].tolist() == [60] * 10 + [62] * 10 + [61] * 10 + [90]


def test_late_and_repeated_samples_are_counted_and_left_out() -> None:
    resampler = Resampler(50.0, 50.0)
    times = START + np.array([0, 1, 2, 1, 2, 3, 3, 4]) / 50
    ticks, made = joined(resampler.push(times, np.array([[0], [1], [2], [9], [9], [3], [9], [4]], np.float32)))
    assert made[:, 0] == pytest.approx([0, 1, 2, 3, 4], abs=1e-3)
    assert resampler.late == 3 and (np.diff(ticks) == 1).all()


def test_a_clock_that_is_set_back_begins_anew_instead_of_being_late_for_hours() -> None:
    resampler, ones = Resampler(25.0, 50.0), np.ones((50, 1), np.float32)
    resampler.push(START + np.arange(50) / 50, ones)
    ticks, _ = joined(resampler.push(START - 3600 + np.arange(50) / 50, ones))
    assert resampler.late == 0 and ticks[0] / 25 == pytest.approx(START - 3600, abs=0.05)


@given(st.integers(0, 2**32))
def test_jitter_of_arrival_is_smoothed_and_drift_does_not_grow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pace, period = Pace(100.0), 0.01005  # the sensor's clock is half a percent slow
    error = []
    for k in range(500):
        true = START + k * 10 * period
        error.append(pace.stamp(10, true + 9 * period + rng.uniform(0, 0.02)) - true)
    assert max(np.abs(error[100:])) < 0.04
    assert np.std(error[100:]) < 0.006  # 0.0058 is the jitter's own


def test_a_pause_of_the_sender_moves_its_clock_at_once() -> None:
    pace = Pace(50.0)
    assert pace.stamp(5, START) == pytest.approx(START - 0.08)
    assert pace.stamp(5, START + 10) == pytest.approx(START + 9.92)
