"""The DSADS reader on files made here, on damaged ones, and on the real recordings where they are."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sensors.dsads import COLUMNS, FOLDS, ROWS, UNITS, Dsads
from sensors.locate import find
from sensors.recording import DataError
from sensors.splits import split
from sensors.windows import cut


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIEF_CACHE", str(tmp_path / "cache"))


def segment_text(begin: int) -> str:
    """125 rows whose first column counts on from `begin` and whose other columns change slowly."""
    t = begin + np.arange(ROWS)
    table = np.sin(t[:, None] / 50.0 + np.arange(COLUMNS))
    table[:, 0] = t
    return "".join(",".join(f"{v:.6g}" for v in row) + "\n" for row in table)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two subjects, two activities, four segments each: in the second activity the third is missing."""
    root = tmp_path / "dsads"
    for activity in (1, 7):
        for subject in (1, 2):
            for number in (1, 2, 3, 4) if activity == 1 else (1, 2, 4):
                file = root / f"data/a{activity:02d}/p{subject}/s{number:02d}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(segment_text((number - 1) * ROWS))
    return root


def packed(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in sorted(folder.rglob("*.txt")):
            archive.write(file, file.relative_to(folder))
    return folder.with_suffix(".zip")


def test_contiguous_segments_become_one_recording_and_missing_ones_a_border(folder: Path) -> None:
    data = Dsads(folder)
    assert data.subjects() == ("1", "2")
    found = [(r.labels[0], r.segment, len(r.labels)) for r in data.recordings("1")]
    assert found == [(0, 1, 4 * ROWS), (6, 1, 2 * ROWS), (6, 4, ROWS)]
    first = next(data.recordings("2"))
    assert np.array_equal(first.streams["torso"][:, 0], np.arange(4 * ROWS))
    assert {name: s.shape[1] for name, s in first.streams.items()} == dict.fromkeys(UNITS, 9)


def test_a_jump_between_segments_is_a_border(folder: Path) -> None:
    (folder / "data/a01/p1/s03.txt").write_text(segment_text(2000))
    found = [(r.segment, len(r.labels)) for r in Dsads(folder).recordings("1") if r.labels[0] == 0]
    assert found == [(1, 2 * ROWS), (3, ROWS), (4, ROWS)]


def test_zip_and_folder_and_the_cache_give_the_same_and_sensors_are_the_units_columns(folder: Path) -> None:
    from_folder = list(Dsads(folder).recordings("1"))
    from_zip = list(Dsads(packed(folder)).recordings("1"))
    again = list(Dsads(folder).recordings("1"))
    sensors = list(Dsads(folder, "sensors").recordings("1"))
    assert len(sensors[0].streams) == 15
    for a, b, c, d in zip(from_folder, from_zip, again, sensors, strict=True):
        for name in a.streams:
            assert np.array_equal(a.streams[name], b.streams[name])
            assert np.array_equal(a.streams[name], c.streams[name])
            assert np.array_equal(a.streams[name][:, 3:6], d.streams[f"{name}_gyro"])


def test_a_file_that_changed_is_read_again(folder: Path) -> None:
    before = next(Dsads(folder).recordings("1")).streams["torso"][0, 0]
    (folder / "data/a01/p1/s01.txt").write_text(segment_text(77))
    assert before == 0.0
    assert next(Dsads(folder).recordings("1")).streams["torso"][0, 0] == 77.0


def _damage(lines: list[str], kind: str) -> str:
    match kind:
        case "a short row":
            lines[4] = lines[4].rsplit(",", 1)[0]
        case "a long row":
            lines[4] += ",1"
        case "two rows that make up for each other":
            lines[4], lines[5] = lines[4].rsplit(",", 1)[0], lines[5] + ",1"
        case "letters":
            lines[4] = "1.2x3" + lines[4][lines[4].index(",") :]
        case "nothing between commas":
            lines[4] = lines[4][lines[4].index(",") :]
        case "infinity":
            lines[4] = "inf" + lines[4][lines[4].index(",") :]
        case "nan":
            lines[4] = "nan" + lines[4][lines[4].index(",") :]
        case "another line end":
            lines[4] += "\r"
        case "an empty line":
            lines.insert(4, "")
        case "a cut-off end":
            return "\n".join(lines)[:-3]
        case "too few rows":
            del lines[100:]
        case "nothing at all":
            return ""
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("a short row", 5, "44 columns, expected 45"),
        ("a long row", 5, "46 columns, expected 45"),
        ("two rows that make up for each other", 5, "44 columns, expected 45"),
        ("letters", 5, "column 1 is '1.2x3', expected a number"),
        ("nothing between commas", 5, "column 1 is '', expected a number"),
        ("infinity", 5, "column 1 is 'inf', expected a number"),
        ("nan", 5, "column 1 is nan, expected a number"),
        ("another line end", 5, "line ends with CRLF, expected LF as in row 1"),
        ("an empty line", 5, "1 columns, expected 45"),
        ("a cut-off end", 125, "the line is cut off"),
        ("too few rows", 100, "100 rows, expected 125"),
        ("nothing at all", 0, "0 rows, expected 125"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_row_and_what_was_expected(
    folder: Path, kind: str, row: int, expected: str
) -> None:
    file = folder / "data/a07/p2/s02.txt"
    file.write_bytes(_damage(file.read_text().splitlines(), kind).encode())
    for data in (Dsads(folder), Dsads(packed(folder))):
        with pytest.raises(DataError) as caught:
            next(data.recordings("2"))  # nothing comes before the error: a subject is never half loaded
        message = str(caught.value)
        assert "data/a07/p2/s02.txt" in message and f"row {row}" in message and expected in message
        assert "\n" not in message
        assert list(data.recordings("1"))


def test_windows_line_ends_throughout_are_fine(folder: Path) -> None:
    file = folder / "data/a01/p1/s01.txt"
    plain = next(Dsads(folder).recordings("1"))
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert np.array_equal(next(Dsads(folder).recordings("1")).streams["torso"], plain.streams["torso"])


def test_wrong_paths_and_wrong_archives_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder, expected .* data/a01/p1/s01\.txt"):
        Dsads(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds none of the recordings"):
        Dsads(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("else/where.txt", "1,2\n")
    with pytest.raises(DataError, match="holds none of the recordings"):
        Dsads(tmp_path / "other.zip")
    (tmp_path / "torn.zip").write_bytes(packed(folder).read_bytes()[:1000])
    with pytest.raises(DataError, match=r"torn\.zip: cannot be read"):
        Dsads(tmp_path / "torn.zip")
    bad = folder / "data/a20/p1/s01.txt"
    bad.parent.mkdir(parents=True)
    bad.write_text(segment_text(0))
    with pytest.raises(DataError, match="activity 20, expected 1 to 19"):
        Dsads(folder)


def test_a_damaged_member_of_a_zip_is_named(folder: Path) -> None:
    file = packed(folder)
    data = bytearray(file.read_bytes())
    data[data.index(b"data/a01/p1/s01.txt") + 200] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"data/a01/p1/s01\.txt: cannot be read"):
        list(Dsads(file).recordings("1"))


def test_a_cache_that_cannot_be_written_or_read_is_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = next(Dsads(folder).recordings("1")).streams["torso"]
    for torn in (tmp_path / "cache").rglob("*.npy"):
        torn.write_bytes(torn.read_bytes()[:60])
    assert np.array_equal(next(Dsads(folder).recordings("1")).streams["torso"], expected)
    assert np.array_equal(next(Dsads(folder).recordings("1")).streams["torso"], expected)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("RELIEF_CACHE", str(tmp_path / "a file" / "below"))
    assert np.array_equal(next(Dsads(folder).recordings("1")).streams["torso"], expected)


def test_without_recordings_the_synthetic_set_is_found_and_says_where_it_looked(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "dsads")
    monkeypatch.delenv("RELIEF_DATA", raising=False)
    found = find("dsads")
    assert found.dataset.name == "synthetic" and found.path is None
    assert (
        "data/dsads" in found.note
        and "RELIEF_DATA is not set" in found.note
        and "relief data fetch dsads" in found.note
    )
    monkeypatch.setenv("RELIEF_DATA", str(tmp_path))
    assert find("dsads").path == folder and find("dsads15").dataset.name == "dsads15"
    assert "2 subjects" in find("dsads").note and "RELIEF_DATA" in find("dsads").note
    with pytest.raises(ValueError, match="no data set 'dsad': expected one of dsads, dsads15"):
        find("dsad")


@pytest.fixture(scope="module")
def real() -> Iterator[Dsads]:
    root = os.environ.get("RELIEF_DATA")
    files = sorted(Path(root).glob("dsads/*.zip")) if root else []
    if not files:
        pytest.skip("needs the DSADS recordings: set RELIEF_DATA to a folder that holds dsads/*.zip")
    yield Dsads(files[0])


def test_the_real_recordings_are_whole_and_fast_the_second_time(real: Dsads) -> None:
    assert real.subjects() == ("1", "2", "3", "4", "5", "6")
    began = time.perf_counter()
    windows = cut((r for s in real.subjects() for r in real.recordings(s)), real)
    first = time.perf_counter() - began
    assert len(windows) == 6 * 19 * 24 and windows.dropped == 0
    assert np.array_equal(np.bincount(windows.y), np.full(19, 6 * 24))
    assert all(np.isfinite(x).all() for x in windows.x.values())
    gravity = np.median(np.linalg.norm(windows.x["torso"][windows.y == 1, :3], axis=1))
    assert 9.0 < gravity < 10.6  # m/s2, standing
    again = []
    for _ in range(3):
        began = time.perf_counter()
        for subject in real.subjects():
            list(real.recordings(subject))
        again.append(time.perf_counter() - began)
    assert min(again) < first / 2
    for fold in FOLDS:
        parts = split(windows, fold)
        assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [4 * 19 * n for n in (16, 4, 4)]
        assert len(parts.held_out) == 2 * 19 * 24


def test_what_is_wrong_with_a_recording_is_told_across_processes() -> None:
    error = DataError("a.txt", "9 columns are expected", 3)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a.txt, row 3: 9 columns are expected"
