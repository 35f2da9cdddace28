"""Chunks: whatever the order, the number of copies and the size, the whole comes out once and unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.chunks import CHUNK, ENVELOPE, Reassembly, chunk_size, split
from protocol.errors import Malformed, TooLarge
from protocol.messages import Chunk, decode

WHOLES = st.binary(max_size=2000)
SIZES = st.integers(1, 700)


@given(WHOLES, SIZES, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_any_order_and_number_of_copies_gives_the_whole(whole: bytes, size: int, random: object) -> None:
    chunks = split("u", whole, size)
    sent = [*chunks, *random.choices(chunks, k=random.randrange(5))]  # type: ignore[attr-defined]
    random.shuffle(sent)  # type: ignore[attr-defined]
    done, reassembly = [], Reassembly()
    for chunk in sent:
        result = reassembly.add(decode(Chunk, chunk.encode()))
        if result is not None:
            done.append(result)
            break
    assert done == [whole]


@given(WHOLES, SIZES)
@settings(deadline=None)
def test_chunks_keep_to_their_size_and_cover_the_whole(whole: bytes, size: int) -> None:
    chunks = split("u", whole, size)
    assert all(len(chunk.data) <= size for chunk in chunks)
    assert b"".join(bytes(chunk.data) for chunk in chunks) == whole
    assert [chunk.index for chunk in chunks] == list(range(chunks[0].count))


@given(WHOLES.filter(len), SIZES, st.data())
@settings(deadline=None)
def test_what_is_missing_is_said_and_nothing_comes_out(whole: bytes, size: int, data: st.DataObject) -> None:
    chunks = split("u", whole, size)
    lost = data.draw(st.sampled_from(chunks))
    reassembly = Reassembly()
    assert all(reassembly.add(chunk) is None for chunk in chunks if chunk is not lost)
    if len(chunks) > 1:
        assert reassembly.missing("u") == reassembly.missing("u", len(chunks)) == [lost.index]
        assert reassembly.missing("u", len(chunks) + 1) == []  # cut differently: nothing of that is here
    assert reassembly.add(lost) == whole
    assert reassembly.missing("u") == []


@given(WHOLES.filter(len), SIZES, st.data())
@settings(deadline=None)
def test_a_flipped_bit_is_noticed(whole: bytes, size: int, data: st.DataObject) -> None:
    chunks = split("u", whole, size)
    n = data.draw(st.integers(0, len(chunks) - 1))
    broken = bytearray(chunks[n].data)
    if not broken:
        return
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    chunks[n] = chunks[n].model_copy(update={"data": bytes(broken)})
    reassembly = Reassembly()
    with pytest.raises(Malformed, match="digest"):
        for chunk in chunks:
            reassembly.add(chunk)


def test_a_sender_that_begins_anew_wins_over_its_past() -> None:
    old, new = split("u", b"a" * 30, 10), split("u", b"b" * 25, 10)
    reassembly = Reassembly()
    reassembly.add(old[0])
    reassembly.add(old[1])
    results = [reassembly.add(chunk) for chunk in (*new[:1], *new[1:])]
    assert results == [None, None, b"b" * 25]


def test_unfinished_wholes_are_bounded_in_number() -> None:
    reassembly = Reassembly(wholes=2)
    for name in "abc":
        reassembly.add(split(name, b"x" * 20, 10)[0])
    assert reassembly.missing("a") == []
    assert reassembly.missing("c") == [1]


def test_unfinished_wholes_are_bounded_in_bytes() -> None:
    reassembly = Reassembly(max_bytes=25)
    chunks = split("a", b"x" * 40, 10)
    with pytest.raises(TooLarge):
        for chunk in chunks:
            reassembly.add(chunk)
    assert reassembly.missing("a") == []


def test_an_index_beyond_the_count_is_refused() -> None:
    chunk = split("a", b"xy", 1)[0].model_copy(update={"index": 7})
    with pytest.raises(Malformed, match="index 7 of 2"):
        Reassembly().add(chunk)


def test_chunks_stay_below_what_the_broker_takes() -> None:
    assert chunk_size(1_000_000) == CHUNK
    assert chunk_size(50_000) == 50_000 - ENVELOPE
    assert CHUNK + ENVELOPE < 128 * 1024


@given(WHOLES, SIZES)
@settings(deadline=None, max_examples=30)
def test_a_chunk_with_its_envelope_fits_the_packet(whole: bytes, size: int) -> None:
    for chunk in split("u" * 100, whole, size):
        assert len(chunk.encode()) <= size + ENVELOPE
