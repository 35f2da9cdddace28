"""A torn or flipped journal loses what was hit and nothing else, and says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.journal import Journal


def written(path: Path, sizes: list[int], *, segment: int = 1 << 20) -> list[tuple[int, int]]:
    """(position, end of the record in its file) of synced records with bodies of these sizes."""
    journal = Journal.open(path, segment_bytes=segment)
    ends = []
    for n, size in enumerate(sizes):
        position = journal.append("update", {"n": n}, os.urandom(size))
        journal.sync()
        ends.append((position, journal.size))
    journal.close()
    return ends


def only_segment(path: Path) -> Path:
    (file,) = path.glob("*.log")
    return file


def numbers(journal: Journal) -> list[int]:
    return [r.header["n"] for r in journal.records()]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.data())
def test_a_file_cut_anywhere_keeps_every_record_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal")
    ends = written(path, sizes)
    cut = data.draw(st.integers(0, ends[-1][1]))
    os.truncate(only_segment(path), cut)
    journal = Journal.open(path)
    whole = [n for n, (_, end) in enumerate(ends) if end <= cut]
    assert numbers(journal) == whole
    at_border = cut in (0, *(end for _, end in ends))
    assert journal.recovered.whole == at_border
    assert at_border or ("cut off" in str(journal.recovered) and journal.recovered.damages[0].cut)
    journal.append("update", {"n": 99})
    journal.sync()
    journal.close()
    again = Journal.open(path)
    assert again.recovered.whole and numbers(again) == [*whole, 99]
    again.close()


@settings(max_examples=120, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.data())
def test_a_flipped_bit_costs_the_record_it_hit_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal")
    ends = written(path, sizes)
    at, bit = data.draw(st.integers(0, ends[-1][1] - 1)), data.draw(st.integers(0, 7))
    flip(only_segment(path), at, bit)
    hit = next(n for n, (_, end) in enumerate(ends) if at < end)
    journal = Journal.open(path)
    assert numbers(journal) == [n for n in range(len(sizes)) if n != hit]
    (damage,) = journal.recovered.damages
    assert damage.after == (ends[hit - 1][0] if hit else 0)
    assert damage.size == ends[hit][1] - (ends[hit - 1][1] if hit else 0)
    assert damage.cut == (hit == len(sizes) - 1)
    journal.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=10), st.data(), st.binary(min_size=1, max_size=500))
@example([0, 0], None, b"\0" * 100)
def test_rubbish_over_any_stretch_leaves_all_that_it_did_not_touch(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject | None, rubbish: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal")
    ends = written(path, sizes, segment=600)
    files = sorted(path.glob("*.log"))
    file = files[0] if data is None else data.draw(st.sampled_from(files))
    before = {f: f.read_bytes() for f in files}
    at = 0 if data is None else data.draw(st.integers(0, max(0, len(before[file]) - 1)))
    changed = bytearray(before[file])
    rubbish = rubbish[: len(changed) - at]
    changed[at : at + len(rubbish)] = rubbish
    file.write_bytes(changed)
    journal = Journal.open(path)
    lost = set(range(len(sizes))) - set(numbers(journal))
    start = sum(len(before[f]) for f in files if f < file) + at
    bounds = [0, *(end for _, end in ends)]
    touched = {n for n in range(len(sizes)) if bounds[n] < start + len(rubbish) and bounds[n + 1] > start}
    assert lost <= touched
    for record in journal.records():
        assert journal._index[record.position].sound()
    journal.close()


def test_a_commit_behind_a_damaged_update_is_still_found(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append("update", {"n": 0}, b"u" * 5000)
    journal.sync()
    commit = journal.append("commit", {"n": 1})
    journal.sync()
    journal.close()
    flip(only_segment(tmp_path), 3, 1)  # in the marker itself
    again = Journal.open(tmp_path)
    assert [(r.position, r.kind) for r in again.records()] == [(commit, "commit")]
    assert "skipped" in str(again.recovered)
    again.close()


def test_a_record_forged_inside_a_body_is_not_believed(tmp_path: Path) -> None:
    """A device that copies the layout of a commit into its update cannot know the marker."""
    other = tmp_path / "other"
    journal = Journal.open(other)
    journal.append("commit", {"forged": True})
    journal.sync()
    journal.close()
    forged = only_segment(other).read_bytes()
    journal = Journal.open(tmp_path / "own")
    journal.append("update", {"n": 0}, forged * 3)
    last = journal.append("update", {"n": 1})
    journal.sync()
    journal.close()
    flip(only_segment(tmp_path / "own"), 10, 0)
    again = Journal.open(tmp_path / "own")
    assert [r.position for r in again.records()] == [last]
    again.close()


def test_a_body_changed_under_an_open_journal_no_longer_has_its_checksum(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    position = journal.append("update", {}, b"x" * 100)
    journal.sync()
    assert journal._index[position].sound()
    flip(only_segment(tmp_path), journal.size - 1, 0)
    assert not journal._index[position].sound()
    journal.close()


def flip(file: Path, at: int, bit: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1 << bit
    file.write_bytes(raw)
