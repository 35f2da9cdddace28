"""Inputs from inputs: flipped, cut, repeated and spliced bytes, and msgpack whose values are replaced by odd ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgpack

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 127, 128, 255, 2**31, 2**53 - 1, 2**53, 2**63, -(2**63), 2**64 - 1, 0.0, -0.0, 1e308,
    -1e308, 5e-324,
    float("nan"), float("inf"), "", "a", "x" * 70, "\x00", "d1", "arm", "shared", "../..", "+", "#", "$SYS",
    "é", b"", b"\x00", b"\xff" * 33, [], [[]], [None], {}, {"": None}, {1: 2}, {"arm": -1},
)  # fmt: skip
INTERESTING = (0x00, 0x01, 0x7F, 0x80, 0x81, 0x90, 0xC0, 0xC1, 0xC4, 0xC6, 0xCB, 0xCF, 0xD9, 0xDB, 0xDD, 0xDF, 0xFF)


def mutated(draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """A new input made of one or two of the pool."""
    data = draw.choice(pool)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        data = draw.choice(_WAYS)(draw, data, pool)
    return data[:20_000]


def _flip(draw: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    if not data:
        return draw.randbytes(draw.randint(0, 40))
    changed = bytearray(data)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set(draw: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    if not data:
        return bytes([draw.choice(INTERESTING)])
    changed = bytearray(data)
    changed[draw.randrange(len(changed))] = draw.choice(INTERESTING)
    return bytes(changed)


def _cut(draw: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start, stop = sorted(draw.randint(0, len(data)) for _ in range(2))
    return data[:start] + data[stop:] if draw.random() < 0.5 else data[:start]


def _repeat(draw: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start, stop = sorted(draw.randint(0, len(data)) for _ in range(2))
    return data[:stop] + data[start:stop] * draw.choice((1, 1, 2, 10)) + data[stop:]


def _insert(draw: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.randbytes(draw.choice((1, 2, 4, 8, 40))) + data[at:]


def _splice(draw: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    other = draw.choice(pool)
    return data[: draw.randint(0, len(data))] + other[draw.randint(0, len(other)) :]


def _value(draw: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Unpack from some small offset on, replace one value deep inside, pack again; a length before it is kept right."""
    start = draw.choice((0, 0, 1, 2, 3))
    try:
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(data[start:])
        plain = unpacker.unpack()
        size = unpacker.tell()
        packed = msgpack.packb(_replaced(draw, plain))
    except Exception:  # bytes that are no msgpack, or too odd to be packed again
        return _flip(draw, data, pool)
    head = data[:start]
    if start >= 2 and len(packed) < 65536:
        head = head[: start - 2] + len(packed).to_bytes(2, "little")
    return head + packed + data[start + size :]


def _replaced(draw: random.Random, plain: Any) -> Any:
    if isinstance(plain, dict) and plain and draw.random() < 0.9:
        key = draw.choice(list(plain))
        what = draw.random()
        if what < 0.1:
            return {k: v for k, v in plain.items() if k != key}
        if what < 0.2:
            return {**plain, draw.choice(("", "shared", "leg", "x" * 80)): plain[key]}
        return {**plain, key: _replaced(draw, plain[key])}
    if isinstance(plain, list) and plain and draw.random() < 0.8:
        at = draw.randrange(len(plain))
        return [*plain[:at], _replaced(draw, plain[at]), *plain[at + 1 :]]
    return draw.choice(ODD)


_WAYS = (_flip, _set, _cut, _repeat, _insert, _splice, _value, _value, _value, _value)
