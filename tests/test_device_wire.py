"""Deltas in fewer bits: what rounding takes away is paid back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from device_runtime.wire import Wire, half, quarter

vectors = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32))


@given(vectors)
def test_full_precision_travels_bit_for_bit(v):
    (tensor,) = Wire().encode("u", {"m": v}, "<f4").values()
    assert tensor.array().tobytes() == v.tobytes()


@given(vectors)
def test_eight_bits_are_wrong_by_half_a_step_at_most(v):
    tensor = quarter(v)
    assert tensor.dtype == "|i1"
    assert np.abs(tensor.array() - v).max() <= 0.5001 * np.abs(v).max() / 127 + 1e-30


@given(arrays(np.float32, 8, elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_neither_form_ever_sends_an_infinity(v):
    assert np.isfinite(half(v).array()).all()
    assert np.isfinite(quarter(v).array()).all()


@pytest.mark.parametrize("dtype", ["<f2", "|i1"])
def test_with_error_feedback_the_sum_of_what_was_sent_follows_the_sum_of_what_was_meant(dtype):
    rng, wire = np.random.default_rng(0), Wire()
    meant, sent, plain = np.zeros(50), np.zeros(50), np.zeros(50)
    for n in range(200):
        delta = (rng.standard_normal(50) * 0.01 + 0.001).astype(np.float32)
        (tensor,) = wire.encode(f"u{n}", {"m": delta}, dtype).values()
        wire.settle(f"u{n}", accepted=True)
        (alone,) = Wire().encode("u", {"m": delta}, dtype).values()
        meant, sent, plain = meant + delta, sent + tensor.array(), plain + alone.array()
    one_step = 0.04 / 127 if dtype == "|i1" else 0.04 * 2**-10
    assert np.abs(sent - meant).max() <= one_step
    assert np.abs(sent - meant).max() < np.abs(plain - meant).max()


def test_a_refused_update_leaves_nothing_owed():
    wire, delta = Wire(), np.array([1.0, 0.003], np.float32)
    (first,) = wire.encode("a", {"m": delta}, "|i1").values()
    wire.settle("a", accepted=False)
    (second,) = wire.encode("b", {"m": delta}, "|i1").values()
    assert bytes(first.data) == bytes(second.data)
    wire.settle("b", accepted=True)
    (third,) = wire.encode("c", {"m": delta}, "|i1").values()
    assert bytes(third.data) != bytes(first.data)


def test_blocks_owe_separately_and_a_changed_size_owes_nothing():
    wire = Wire()
    wire.encode("a", {"m": np.array([1.0, 0.003], np.float32)}, "|i1")
    wire.settle("a", accepted=True)
    (tensor,) = wire.encode("b", {"n": np.array([1.0, 0.003], np.float32)}, "|i1").values()
    assert tensor.array()[1] == 0
    (tensor,) = wire.encode("c", {"m": np.array([1.0, 0.003, 0.0], np.float32)}, "|i1").values()
    assert tensor.array()[1] == 0


def test_a_form_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="cannot travel as '<i4'"):
        Wire().encode("u", {"m": np.zeros(2, np.float32)}, "<i4")


def test_a_block_of_zeros_travels():
    assert quarter(np.zeros(3, np.float32)).array().tolist() == [0, 0, 0]
