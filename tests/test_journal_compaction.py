"""Compaction frees space, keeps positions and is safe at any moment; a full disk loses nothing."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.journal import Journal, JournalFull, Record


def fill(journal: Journal, count: int, size: int = 200) -> list[int]:
    positions = []
    for n in range(count):
        positions.append(journal.append("commit" if n % 10 == 9 else "update", {"n": n}, bytes([n % 251]) * size))
        if n % 3 == 0:
            journal.sync()
    journal.sync()
    return positions


def is_commit(record: Record) -> bool:
    return record.kind == "commit"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=3), st.integers(1, 6000))
def test_what_is_kept_keeps_its_position_and_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, count: int, keeps: list[set[int]], segment: int
) -> None:
    path = tmp_path_factory.mktemp("journal")
    journal = Journal.open(path, segment_bytes=segment)
    positions, held = fill(journal, count), set(range(count))
    for keep in keeps:
        journal.compact(lambda record, keep=keep: record.header["n"] in keep)
        held &= keep
    unsynced = journal.append("update", {"n": 41})
    assert [r.header["n"] for r in journal.records()] == [*sorted(held), 41]
    journal.sync()
    journal.close()
    again = Journal.open(path, segment_bytes=segment)
    assert again.recovered.whole
    assert [r.position for r in again.records()] == [*(positions[n] for n in sorted(held)), unsynced]
    for n in held:
        assert again.read(positions[n]) == bytes([n % 251]) * 200
    assert again.append("update", {}) == unsynced + 1
    again.close()


def test_space_of_what_is_not_kept_is_freed_and_files_do_not_pile_up(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, segment_bytes=20_000)
    sizes = []
    for _ in range(50):
        fill(journal, 100)
        assert journal.compact(is_commit) > 0
        sizes.append((journal.size, len(list(tmp_path.iterdir())), len(list(Path("/proc/self/fd").iterdir()))))
    assert all(record.kind == "commit" for record in journal.records())
    assert sizes[-1][0] < 50 * 10 * 300
    assert sizes[-1][1] < 50 * 10 * 300 / 5_000  # none smaller than a quarter of a segment
    assert sizes[-1][2] - sizes[0][2] < 30
    journal.close()


def test_positions_go_on_after_everything_was_dropped(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    last = fill(journal, 5)[-1]
    journal.compact(lambda _: False)
    journal.close()
    again = Journal.open(tmp_path)
    assert again.append("update", {}) == last + 1
    again.close()


def test_records_that_are_not_synced_yet_outlive_a_compaction(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    fill(journal, 5)
    waiting = journal.append("update", {"n": 99})
    journal.compact(lambda _: False)
    journal.sync()
    assert [r.position for r in journal.records()] == [waiting]
    journal.close()


COMPACTING = """
import sys
from pathlib import Path
from coordinator.journal import Journal
journal = Journal.open(Path(sys.argv[1]), segment_bytes=20_000)
print("ready", flush=True)
n = 0
while True:
    for _ in range(30):
        position = journal.append("commit" if n % 10 == 9 else "update", {"n": n}, b"%d" % n * 50)
        n += 1
    journal.sync()
    print(position, flush=True)
    journal.compact(lambda record: record.kind == "commit")
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_during_compaction_loses_no_commit(tmp_path: Path, seed: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMPACTING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        first = child.stdout.readline()
        time.sleep(random.Random(seed).uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        acked = [int(line) for line in (first + child.stdout.read()).split()]
    journal = Journal.open(tmp_path)
    found = {r.position: r for r in journal.records() if is_commit(r)}
    assert set(range(10, acked[-1] + 1, 10)) <= set(found)
    assert all(journal.read(p) == b"%d" % r.header["n"] * 50 for p, r in found.items())
    assert not list(tmp_path.glob("*.tmp"))
    journal.close()


def test_a_full_disk_is_said_and_loses_nothing(full_disk: Path) -> None:
    """On a real mount of 256 KiB."""
    journal = Journal.open(full_disk / "journal")
    durable = [journal.append("update", {"n": n}, b"a" * 10_000) for n in range(5)]
    journal.sync()
    waiting = [journal.append("update", {"n": n}, b"b" * 100_000) for n in range(3)]
    before = journal.size
    for _ in range(3):
        with pytest.raises(JournalFull, match="no space for 300,"):
            journal.sync()
        assert journal.size == before
    assert [r.position for r in journal.records()] == durable + waiting
    freed = journal.compact(lambda record: record.position == durable[0])
    assert freed > 35_000
    with pytest.raises(JournalFull):
        journal.sync()
    subprocess.run(["mount", "-o", "remount,size=4m", str(full_disk)], check=True)
    journal.sync()
    journal.close()
    again = Journal.open(full_disk / "journal")
    assert again.recovered.whole
    assert [r.position for r in again.records()] == [durable[0], *waiting]
    again.close()


LIMITED = """
import resource, sys
from pathlib import Path
from coordinator.journal import Journal, JournalFull
journal = Journal.open(Path(sys.argv[1]))
journal.append("update", {"n": 0}, b"a" * 20_000)
journal.sync()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
journal.append("update", {"n": 1}, b"b" * 20_000)
journal.append("update", {"n": 2}, b"c" * 20_000)
try:
    journal.sync()
    raise SystemExit("the limit did not bite")
except JournalFull as error:
    print(error)
assert next(Path(sys.argv[1]).glob("*.log")).stat().st_size == journal.size < 21_000
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append("update", {"n": 3}, b"d")
journal.sync()
journal.close()
again = Journal.open(Path(sys.argv[1]))
assert [r.header["n"] for r in again.records()] == [0, 1, 2, 3] and again.recovered.whole
"""


def test_a_write_that_stops_half_way_leaves_the_file_at_its_last_whole_record(tmp_path: Path) -> None:
    """The kernel's limit on a file's size lets the first part of a write through, as a filling disk does."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no space" in done.stdout


def test_a_copy_that_finds_no_space_leaves_the_journal_as_it_was(full_disk: Path) -> None:
    journal = Journal.open(full_disk / "journal")
    positions = [journal.append("update", {"n": n}, b"a" * 50_000) for n in range(4)]
    journal.sync()
    with pytest.raises(JournalFull):
        journal.compact(lambda record: record.position != positions[0])
    assert not list((full_disk / "journal").glob("*.tmp"))
    assert [journal.read(p) for p in positions] == [b"a" * 50_000] * 4
    journal.close()
    with contextlib.closing(Journal.open(full_disk / "journal")) as again:
        assert again.recovered.whole and again.recovered.records == 4
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
