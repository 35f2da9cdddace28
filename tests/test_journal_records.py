"""What is appended and synced can be read back, in order, by position, in slices; and survives reopening."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.journal import Journal, JournalError, JournalLocked

entries = st.lists(
    st.tuples(
        st.sampled_from(["update", "commit", "round"]),
        st.dictionaries(st.text(max_size=8), st.integers(0, 2**40) | st.text(max_size=8), max_size=4),
        st.binary(max_size=300),
    ),
    max_size=30,
)


def contents(journal: Journal) -> list[tuple[int, str, dict[str, object], bytes]]:
    return [(r.position, r.kind, r.header, journal.read(r.position)) for r in journal.records()]


@settings(max_examples=60, deadline=None)
@given(entries, st.integers(1, 2000), st.lists(st.booleans(), min_size=30, max_size=30))
def test_what_was_synced_is_there_after_reopening_and_what_was_not_is_gone(
    tmp_path_factory: pytest.TempPathFactory,
    wanted: list[tuple[str, dict[str, object], bytes]],
    segment: int,
    syncs: list[bool],
) -> None:
    path = tmp_path_factory.mktemp("journal")
    journal = Journal.open(path, segment_bytes=segment)
    written, durable = [], 0
    for (kind, header, body), sync in zip(wanted, syncs, strict=False):
        written.append((journal.append(kind, header, body), kind, header, body))
        if sync:
            journal.sync()
            durable = len(written)
    assert contents(journal) == written
    journal.close()
    again = Journal.open(path, segment_bytes=segment)
    assert again.recovered.whole
    assert contents(again) == written[:durable]
    again.close()


def test_a_body_is_read_in_slices(tmp_path: Path) -> None:
    journal, body = Journal.open(tmp_path), bytes(range(256)) * 40
    position = journal.append("update", {}, memoryview(body))
    for _ in range(2):  # buffered, then from the file
        assert journal.read(position, 100, 50) == body[100:150]
        assert journal.read(position, 10_200) == body[10_200:]
        assert journal.read(position, 20_000, 5) == b""
        journal.sync()
    journal.close()


def test_a_changed_buffer_does_not_change_what_was_appended(tmp_path: Path) -> None:
    journal, buffer = Journal.open(tmp_path), bytearray(b"before")
    position = journal.append("update", {}, memoryview(buffer))
    buffer[:] = b"after!"
    journal.sync()
    assert journal.read(position) == b"before"
    journal.close()


def test_records_start_at_the_position_asked_for(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    positions = [journal.append("n", {"n": n}) for n in range(10)]
    journal.sync()
    positions += [journal.append("n", {"n": n}) for n in range(10, 15)]
    assert [r.header["n"] for r in journal.records(positions[7])] == list(range(7, 15))
    assert [r.header["n"] for r in journal.records(positions[12])] == [12, 13, 14]
    journal.close()


def test_a_position_that_was_never_given_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    with pytest.raises(KeyError, match="no record 7"):
        journal.read(7)
    journal.close()


def test_a_second_coordinator_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    with pytest.raises(JournalLocked, match="another process"):
        Journal.open(tmp_path)
    journal.close()
    Journal.open(tmp_path).close()


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append("update", {})


def test_positions_go_on_behind_what_was_synced(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    last = [journal.append("n", {}) for _ in range(3)][-1]
    journal.sync()
    journal.close()
    again = Journal.open(tmp_path)
    assert again.append("n", {}) == last + 1
    again.close()


def test_threads_append_and_sync_together_and_lose_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=4096)

    def work(thread: int) -> None:
        for n in range(100):
            journal.append("n", {"thread": thread, "n": n}, bytes([thread]) * n)
            if n % 7 == 0:
                journal.sync()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    journal.sync()
    journal.close()
    again = Journal.open(tmp_path)
    found = [(r.header["thread"], r.header["n"]) for r in again.records()]
    assert sorted(found) == [(k, n) for k in range(4) for n in range(100)]
    for k in range(4):
        assert [n for thread, n in found if thread == k] == list(range(100))
    again.close()
