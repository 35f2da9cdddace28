"""The codec's laws: what is encoded is decoded again, and strangers' bytes are refused without harm."""

from __future__ import annotations

import inspect
import string
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages
from protocol.errors import Malformed, ProtocolError, TooLarge
from protocol.messages import Message, Tensor, Update, decode

KINDS = [
    kind
    for _, kind in inspect.getmembers(messages, inspect.isclass)
    if issubclass(kind, Message) and kind is not Message and kind.__module__ == "protocol.messages"
]
NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**53 - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FINITE | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


def _values(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Messages of `kind` whose fields take any value their types allow."""
    fields = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if name in kind.model_fields:
            fields[name] = st.integers(1, 65536) if (kind, name) == (messages.Chunk, "count") else _of(hint)
    return st.builds(kind.model_validate, st.fixed_dictionaries(fields))


def _of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of one annotation."""
    simple = {
        messages.Buffer: st.binary(max_size=300),
        messages.Name: NAMES,
        messages.Operator: NAMES,
        messages.Count: COUNTS,
        messages.Finite: FINITE,
        bytes: st.binary(max_size=40),
        int: COUNTS,
        bool: st.booleans(),
        str: st.text(max_size=20),
        Any: PLAIN,
    }
    if hint in simple:
        return simple[hint]
    if isinstance(hint, type) and issubclass(hint, Message):
        return _values(hint)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is list:
        return st.lists(_of(get_args(hint)[0]), max_size=4)
    if get_origin(hint) is dict:
        return st.dictionaries(NAMES, _of(get_args(hint)[1]), max_size=3)
    if get_origin(hint) is UnionType:
        return st.one_of(*(st.none() if one is NoneType else _of(one) for one in get_args(hint)))
    raise AssertionError(f"no values for {hint}: teach this test")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_every_message_survives_the_wire(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(_values(kind))
    again = decode(kind, message.encode())
    assert again == message
    assert again.encode() == message.encode()


@given(st.lists(FINITE.filter(lambda x: abs(x) < 1e38), max_size=50), st.sampled_from(["<f4", "<f8", "<f2"]))
@settings(deadline=None)
def test_a_tensor_comes_back_bit_for_bit(values: list[float], dtype: str) -> None:
    with np.errstate(over="ignore"):
        vector = np.array(values, dtype)
    again = decode(Tensor, Tensor.of(vector).encode()).array()
    assert again.dtype == vector.dtype
    assert again.tobytes() == vector.tobytes()


def test_a_tensor_costs_its_bytes_and_nothing_more() -> None:
    vector = np.random.default_rng(0).normal(size=5_000).astype(np.float32)
    update = Update(
        id="u1",
        device="d1",
        boot="b",
        round=3,
        epoch=1,
        assignment="a",
        samples=10,
        blocks={"acc": messages.BlockWork(version=2, steps=8, delta=Tensor.of(vector))},
    )
    assert len(update.encode()) <= 1.02 * vector.nbytes


def test_an_int8_tensor_is_scaled_back() -> None:
    tensor = Tensor.of(np.array([-127, 0, 64], np.int8), scale=0.5)
    np.testing.assert_array_equal(decode(Tensor, tensor.encode()).array(), np.array([-63.5, 0, 32], np.float32))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(noise=st.binary(max_size=200))
@settings(max_examples=30, deadline=None)
def test_bytes_of_strangers_raise_nothing_but_a_refusal(kind: type[Message], noise: bytes) -> None:
    try:
        decode(kind, noise)
    except ProtocolError as error:
        assert kind.__name__ in str(error)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_truncated_message_is_refused(data: st.DataObject) -> None:
    whole = data.draw(_values(Update)).encode()
    with pytest.raises(Malformed):
        decode(Update, whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(PLAIN)
@settings(deadline=None)
def test_any_msgpack_is_refused_or_read(value: Any) -> None:
    try:
        packed = msgpack.packb(value)
    except OverflowError:
        return
    for kind in KINDS:
        try:
            decode(kind, packed)
        except Malformed as error:
            assert len(str(error)) < 400


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    payload = msgpack.packb({"update": "u", "accepted": True, "since_v9": [1, 2]})
    assert decode(messages.Answer, payload) == messages.Answer(update="u", accepted=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"round": -1}, "round"),
        ({"round": "3"}, "round"),
        ({"samples": 2**60}, "samples"),
        ({"loss": float("nan")}, "loss"),
        ({"seconds": float("inf")}, "seconds"),
        ({"device": ""}, "device"),
        ({"device": "x" * 65}, "device"),
        ({"blocks": {"acc": {"version": 1, "steps": 1, "delta": {"data": "text"}}}}, "blocks.acc.delta.data"),
        ({"blocks": {"acc": {"version": 1, "steps": 1, "delta": {"data": b"", "dtype": "<c8"}}}}, "dtype"),
        ({"blocks": [1]}, "blocks"),
    ],
)
def test_a_refusal_names_the_field(change: dict[str, Any], field: str) -> None:
    good = {
        "id": "u",
        "device": "d",
        "boot": "b",
        "round": 1,
        "epoch": 1,
        "assignment": "a",
        "samples": 1,
        "blocks": {},
    }
    assert decode(Update, msgpack.packb(good)).device == "d"
    with pytest.raises(Malformed, match=field):
        decode(Update, msgpack.packb({**good, **change}))


def test_a_giant_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE", 1000)
    with pytest.raises(TooLarge, match="at most 1,000"):
        decode(Update, bytes(1001))


def test_deep_nesting_does_not_break_the_reader() -> None:
    with pytest.raises(Malformed):
        decode(Update, b"\x91" * 100_000)
