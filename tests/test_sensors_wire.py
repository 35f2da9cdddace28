"""Samples on sensor topics: what is written is read, and nothing else gets in."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sensors.recording import Floats, Modality
from sensors.stream import Samples
from sensors.wire import BadSamples, about, decode, encode, read_about

ACC = Modality("acc", ("x", "y", "z"), "m/s2", 50.0)
streams = arrays(
    np.float32, st.tuples(st.integers(1, 8), st.just(3)), elements=st.floats(width=32, allow_infinity=False)
)
keys = st.sampled_from(["time", "rate", "values", "labels", "modalities", "activities"])
strangers = st.binary(max_size=40) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner),
).map(lambda plain: json.dumps(plain).encode())


@given(streams, st.floats(0, 2e9), st.booleans())
@settings(deadline=None)
def test_samples_survive_the_wire_bit_by_bit(stream: Floats, time: float, labelled: bool) -> None:
    labels = np.arange(len(stream)) - 1 if labelled else np.empty(0, np.int64)
    found = decode(encode(Samples(time, 50.0, {"acc": stream}, labels), "acc"), ACC)
    assert found.time == time and found.rate_hz == 50.0 and found.labels.tolist() == labels.tolist()
    assert np.array_equal(found.streams["acc"], stream, equal_nan=True)


@given(strangers)
@settings(deadline=None)
def test_bytes_of_strangers_are_refused_and_never_crash(payload: bytes) -> None:
    reads: tuple[Callable[[], object], ...] = (lambda: decode(payload, ACC), lambda: read_about(payload))
    for read in reads:
        try:
            read()
        except BadSamples as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"time": "now"}, "time is 'now'"),
        ({"time": True}, "time is 'True'"),
        ({"time": 10**400}, "time is '1000"),
        ({"values": []}, "1 to 100000 rows"),
        ({"values": [[1, 2]]}, "rows of 3 numbers"),
        ({"values": [[1, 2, "3"]]}, "rows of 3 numbers"),
        ({"values": [[1, 2, 1e39]]}, "finite"),
        ({"labels": [1, 2]}, "labels, expected 1"),
        ({"labels": [-2]}, "labels, expected 1"),
        ({"labels": [1.5]}, "labels, expected 1"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], expected: str) -> None:
    plain = {"time": 0.0, "rate": 50.0, "values": [[1.0, 2.0, None]], "labels": [0]}
    assert np.isnan(decode(json.dumps(plain).encode(), ACC).streams["acc"][0, 2])
    with pytest.raises(BadSamples, match=expected):
        decode(json.dumps(plain | change).encode(), ACC)


def test_what_the_topics_carry_is_told_beside_them() -> None:
    assert read_about(about([ACC], ["walking"])) == ((ACC,), ("walking",))
