"""How long a round will take: a plain sum over blocks, and close to what is measured."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.profiler import Profile
from models.local import Local
from models.spec import SHARED, InputSpec, Mode, ModelSpec


class Time:
    def __init__(self, forward: float, backward: float, encoded: int, trained: int) -> None:
        self.forward, self.backward, self.encoded, self.trained = forward, backward, encoded, trained


SPEC = ModelSpec((InputSpec("chest", 6, 100), InputSpec("wrist", 6, 100)), classes=6, widths=(8, 16), bins=2)
LORA = replace(SPEC, mode=Mode.LORA)


def profile() -> Profile:
    known = Profile()
    times = {"chest": Time(0.4, 0.8, 100, 100), "wrist": Time(0.2, 0.4, 100, 100), SHARED: Time(0.1, 0.05, 100, 100)}
    known.observe(times)
    return known


def test_a_trained_block_costs_forward_and_backward_of_every_window():
    steps = {"wrist": 10, SHARED: 10}
    seconds = profile().seconds(SPEC, ["wrist"], steps, Local(batch=8), windows=500)
    assert seconds == pytest.approx(80 * (0.002 + 0.004 + 0.001 + 0.0005))


def test_a_frozen_block_costs_its_encoder_once_per_window_and_round():
    steps = {"wrist": 10, SHARED: 10}
    both = profile().seconds(SPEC, ["chest", "wrist"], steps, Local(batch=8), windows=20)
    alone = profile().seconds(SPEC, ["wrist"], steps, Local(batch=8), windows=20)
    assert both - alone == pytest.approx(20 * 0.004)
    uncached = profile().seconds(SPEC, ["chest", "wrist"], steps, Local(batch=8, cache=False), windows=20)
    assert uncached - alone == pytest.approx(80 * 0.004)


def test_frozen_encoders_cost_nothing_for_windows_whose_features_are_here():
    steps = {"wrist": 10, SHARED: 10}
    first = profile().seconds(LORA, ["wrist"], steps, Local(batch=8), windows=20)
    later = profile().seconds(LORA, ["wrist"], steps, Local(batch=8), windows=20, lacking={"wrist": 3})
    assert first - later == pytest.approx(17 * 0.002)


def test_a_block_that_was_never_measured_gives_no_prediction():
    assert profile().seconds(SPEC, ["ecg"], {SHARED: 1}, Local(), windows=20) == 0.0


@given(st.lists(st.tuples(st.floats(0.001, 10.0), st.integers(1, 1000)), min_size=1, max_size=20))
def test_the_estimate_stays_between_the_slowest_and_the_fastest_round(rounds):
    known = Profile()
    for seconds, windows in rounds:
        known.observe({"chest": Time(seconds, 0.0, windows, 0)})
    each = [seconds / windows for seconds, windows in rounds]
    assert min(each) * 0.999 <= known.speed["chest"].forward <= max(each) * 1.001
    assert known.speed["chest"].backward == 0.0


def test_a_device_that_became_slower_is_known_to_be_after_a_few_rounds():
    known = Profile()
    for seconds in [1.0] * 5 + [3.0] * 5:
        known.observe({"chest": Time(seconds, 0.0, 100, 0)})
    assert known.speed["chest"].forward == pytest.approx(0.03, rel=0.1)


def test_predictions_are_held_against_what_was_measured():
    known = Profile()
    assert known.settle(0.0, 2.0).error == 1.0
    for predicted in (1.0, 2.2, 1.9):
        known.settle(predicted, 2.0)
    assert known.median_error == pytest.approx(0.1)


def test_measured_rounds_are_predicted():
    """For real: rounds of other lengths and blocks than those that were observed."""
    torch = pytest.importorskip("torch")
    from device_runtime.calibration import measure
    from device_runtime.trainer import train
    from models.network import Network

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        known, draw = Profile(), torch.Generator().manual_seed(0)
        known.observe(measure(SPEC, SPEC.names, stop=lambda: False))
        assert set(known.speed) == {"chest", "wrist", SHARED}
        x = {m: torch.randn((200, 6, 100), generator=draw) for m in SPEC.names}
        y = torch.randint(6, (200,), generator=draw)
        plans = [{"chest": 60, SHARED: 60}, {"wrist": 90, SHARED: 90}, {"chest": 40, "wrist": 80, SHARED: 80}]
        for n, steps in enumerate(plans * 3):
            predicted = known.seconds(SPEC, SPEC.names, steps, Local(), 200)
            done = train(Network(SPEC), x, y, steps, Local(), device="d", round=n)
            known.observe(done.times)
            known.settle(predicted, done.wall)
    finally:
        torch.set_num_threads(threads)
    # On a quiet machine the median is some percent; here other work may share the core.
    assert known.median_error < 0.4 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
