"""Reading ahead changes nothing but the number of system calls."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.buffered import AHEAD, Buffered


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    buffered = Buffered(other)
    buffered.setblocking(False)
    yield one, buffered
    one.close()
    buffered.close()


@given(
    writes=st.lists(st.integers(1, 3 * AHEAD), max_size=6),
    reads=st.lists(st.integers(1, 2 * AHEAD), min_size=1, max_size=40),
)
def test_every_byte_comes_once_and_in_order(writes, reads):
    one, other = socket.socketpair()
    with one, Buffered(other) as buffered:
        buffered.setblocking(False)
        sent = b"".join(bytes([k % 251]) * size for k, size in enumerate(writes, 1))
        got = b""
        one.sendall(sent)
        one.shutdown(socket.SHUT_WR)
        while True:
            wanted = reads[len(got) % len(reads)]
            part = buffered.recv(wanted)
            assert len(part) <= wanted
            if not part:
                break
            got += part
        assert got == sent
        assert buffered.pending() == 0


def test_what_select_cannot_see_is_pending(pair):
    one, buffered = pair
    one.sendall(b"0123456789")
    assert buffered.recv(1) == b"0"
    assert buffered.pending() == 9
    assert buffered.recv(100) == b"123456789"
    assert buffered.pending() == 0
    with pytest.raises(BlockingIOError):
        buffered.recv(1)


def test_flags_go_to_the_system(pair):
    one, buffered = pair
    one.sendall(b"ab")
    assert buffered.recv(1, socket.MSG_PEEK) == b"a"
    assert buffered.recv(2) == b"ab"
