"""PAMAP2 and MHEALTH: the rules of reading on made-up originals, damage named by row, real files where they are."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors import mhealth, pamap2
from sensors.cache import CONTENTS
from sensors.gaps import hold, interpolate
from sensors.locate import find
from sensors.mhealth import Mhealth
from sensors.originals import write_mhealth, write_pamap2
from sensors.pamap2 import Pamap2
from sensors.recording import UNLABELLED, DataError, Recording
from sensors.replay import ReplaySource
from sensors.stream import WindowRing
from sensors.windows import cut, runs
from tests.test_sensors_stream import pieces


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIEF_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    write_pamap2(root / "pamap2", subjects=2, bout_s=6.0, bouts=1)
    write_mhealth(root / "mhealth", subjects=2, bout_s=6.0, bouts=1)
    return root


@pytest.fixture
def pamap2_file(written: Path, tmp_path: Path) -> Path:
    """A copy of one file, to be damaged."""
    file = tmp_path / "some" / "Protocol" / "subject101.dat"
    file.parent.mkdir(parents=True)
    file.write_bytes((written / "pamap2/Protocol/subject101.dat").read_bytes())
    return file


def only(data: Pamap2 | Mhealth, subject: str) -> Recording:
    (recording,) = data.recordings(subject)
    return recording


def raw(file: Path) -> list[list[str]]:
    return [line.split(" ") for line in file.read_text().splitlines()]


def rewrite(file: Path, rows: list[list[str]]) -> None:
    file.write_text("".join(" ".join(row) + "\n" for row in rows))


# -- the rules -------------------------------------------------------------------------------------------------


def test_pamap2_keeps_every_third_row_and_the_good_columns(pamap2_file: Path) -> None:
    rows = raw(pamap2_file)
    recording = only(Pamap2(pamap2_file.parent), "101")
    assert recording.rate_hz == pytest.approx(100 / 3)
    assert list(recording.streams) == [
        *(f"{u}_{k}" for u in ("hand", "chest", "ankle") for k in ("acc", "gyro", "mag")),
        "heart_rate",
    ]
    taken = rows[::3]
    for unit, first in pamap2.UNITS.items():
        for kind, offset in (("acc", 1), ("gyro", 7), ("mag", 10)):
            columns = np.array([row[first + offset : first + offset + 3] for row in taken], np.float64)
            present = ~np.isnan(columns).any(axis=1)
            assert present.mean() > 0.9
            assert np.allclose(recording.streams[f"{unit}_{kind}"][present], columns[present], rtol=1e-6)
    codes = [0 if label == UNLABELLED else list(pamap2.ACTIVITIES)[label] for label in recording.labels]
    assert codes == [int(row[1]) for row in taken]
    assert set(codes) == {0, *pamap2.ACTIVITIES}


def test_short_gaps_are_filled_and_long_ones_cost_their_windows(pamap2_file: Path) -> None:
    data = Pamap2(pamap2_file.parent)
    assert not any(np.isnan(s).any() for s in only(data, "101").streams.values())
    before = cut(data.recordings("101"), data)
    rows = raw(pamap2_file)
    begin, _, _ = next(runs(only(data, "101").labels))
    for row in rows[3 * begin + 60 : 3 * begin + 111]:  # 0.51 s, one sample more than is filled
        row[3:20] = ["NaN"] * 17
    rewrite(pamap2_file, rows)
    data = Pamap2(pamap2_file.parent)
    recording = only(data, "101")
    missing = np.flatnonzero(np.isnan(recording.streams["hand_gyro"]).any(axis=1))
    assert missing.tolist() == list(range(begin + 20, begin + 37))
    assert not np.isnan(recording.streams["chest_gyro"]).any()
    after = cut(data.recordings("101"), data)
    assert after.dropped == 1 and len(after) == len(before) - 1


def test_the_heart_rate_stands_until_the_next_one_but_not_for_ever(pamap2_file: Path) -> None:
    rows = raw(pamap2_file)
    for row in rows:
        row[2] = "NaN"
    rows[300][2], rows[330][2] = "90", "95"
    rewrite(pamap2_file, rows)
    rate = only(Pamap2(pamap2_file.parent), "101").streams["heart_rate"][:, 0]
    assert np.isnan(rate[:100]).all()
    assert (rate[100:110] == 90).all() and (rate[110:277] == 95).all()
    assert np.isnan(rate[277:]).all()  # 5 s after its last word the belt has fallen off


def test_rows_that_are_missing_altogether_are_a_gap_and_long_silence_ends_the_recording(pamap2_file: Path) -> None:
    rows = raw(pamap2_file)
    whole = only(Pamap2(pamap2_file.parent), "101")
    rewrite(pamap2_file, rows[:600] + rows[630:])
    shorter = only(Pamap2(pamap2_file.parent), "101")
    assert len(shorter.labels) == len(whole.labels)
    assert np.array_equal(shorter.streams["ankle_acc"][:200], whole.streams["ankle_acc"][:200])
    assert np.array_equal(shorter.streams["ankle_acc"][210:], whole.streams["ankle_acc"][210:])
    assert not np.isnan(shorter.streams["ankle_acc"][200:210]).any()
    rewrite(pamap2_file, rows[:600] + rows[900:])
    first, second = Pamap2(pamap2_file.parent).recordings("101")
    assert len(first.labels) == 200
    assert np.array_equal(second.streams["ankle_acc"][0], whole.streams["ankle_acc"][300])


def test_mhealth_has_its_own_rate_labels_and_null_class(written: Path) -> None:
    data = Mhealth(written / "mhealth")
    table = np.loadtxt(written / "mhealth/MHEALTHDATASET/mHealth_subject2.log")
    recording = only(data, "2")
    assert recording.rate_hz == 50.0 and data.window_s == 2.56 and data.overlap == 0.5
    assert np.array_equal(recording.labels, table[:, 23] - 1)  # null, 0, becomes UNLABELLED, -1
    for name, (first, channels, _) in mhealth.SENSORS.items():
        assert np.allclose(recording.streams[name], table[:, first : first + len(channels)], rtol=1e-6)


def test_an_all_nan_column_is_an_absent_sensor(tmp_path: Path) -> None:
    write_mhealth(tmp_path, subjects=2, bout_s=4.0, bouts=1, absent=("ecg", "arm_mag"))
    data = Mhealth(tmp_path)
    names = [m.name for m in data.modalities]
    assert "ecg" not in names and "arm_mag" not in names and len(names) == 6
    assert list(only(data, "1").streams) == names
    one_only = tmp_path / "MHEALTHDATASET/mHealth_subject2.log"
    write_mhealth(tmp_path, subjects=1, bout_s=4.0, bouts=1)
    data = Mhealth(tmp_path)
    assert "ecg" in [m.name for m in data.modalities]
    assert "ecg" in only(data, "1").streams and "ecg" not in only(data, "2").streams
    assert one_only.exists()


def test_zip_files_and_nested_folders_read_alike_and_optional_recordings_are_left_out(
    written: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted((written / "pamap2/Protocol").iterdir()):
            packed.write(file, f"PAMAP2_Dataset/Protocol/{file.name}")
            packed.write(file, f"PAMAP2_Dataset/Optional/{file.name}")
    a, b = Pamap2(tmp_path / "p.zip"), Pamap2(written)
    assert a.subjects() == b.subjects() == ("101", "102")
    for name, stream in only(a, "102").streams.items():
        assert np.array_equal(stream, only(b, "102").streams[name], equal_nan=True)


def test_the_second_reading_comes_from_the_cache(pamap2_file: Path) -> None:
    data = Pamap2(pamap2_file.parent)
    first = only(data, "101")
    about = pamap2_file.stat()
    pamap2_file.write_bytes(b"#" * about.st_size)
    os.utime(pamap2_file, ns=(about.st_atime_ns, about.st_mtime_ns))
    again = only(data, "101")
    assert all(np.array_equal(s, again.streams[n], equal_nan=True) for n, s in first.streams.items())


def _zeros(files: list[Path]) -> None:
    """What a power cut may leave: the length is there, the content is not."""
    for file in files:
        if file.suffix == ".npy":
            file.write_bytes(file.read_bytes()[:128] + bytes(file.stat().st_size - 128))


def _one_bit(files: list[Path]) -> None:
    file = next(f for f in files if f.name == "chest_gyro.npy")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)


def _one_lost(files: list[Path]) -> None:
    next(f for f in files if f.name == "heart_rate.npy").unlink()


def _nothing_said(files: list[Path]) -> None:
    next(f for f in files if f.name == CONTENTS and (f.parent / "labels.npy").exists()).write_bytes(b"")


@pytest.mark.parametrize("damage", [_zeros, _one_bit, _one_lost, _nothing_said])
def test_a_damaged_cache_is_made_anew_and_never_read(
    pamap2_file: Path, tmp_path: Path, damage: Callable[[list[Path]], None]
) -> None:
    first = only(Pamap2(pamap2_file.parent), "101")
    kept = sorted(f for f in (tmp_path / "cache").rglob("*") if f.is_file())
    assert len(kept) > 10
    whole = {file: file.read_bytes() for file in kept}
    damage(kept)
    again = only(Pamap2(pamap2_file.parent), "101")
    assert list(again.streams) == list(first.streams) and np.array_equal(again.labels, first.labels)
    assert all(np.array_equal(s, again.streams[n], equal_nan=True) for n, s in first.streams.items())
    assert {file: file.read_bytes() for file in kept} == whole


def test_a_replay_of_pamap2_gives_its_windows(written: Path) -> None:
    data = Pamap2(written / "pamap2")
    source = ReplaySource(data, "101", ["hand_acc", "heart_rate"], speed=float("inf"), piece_s=1.0)
    ring = WindowRing(source.modalities, data.rate_hz, data.window_s, data.overlap)
    source.open()
    for samples in pieces(source):
        ring.push(samples)
    ring.flush()
    expected = cut(data.recordings("101"), data, modalities=["hand_acc", "heart_rate"])
    assert len(expected) and np.array_equal(ring.windows().x["hand_acc"], expected.x["hand_acc"])


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6))
@settings(deadline=None)
def test_interpolation_keeps_samples_and_fills_only_short_inner_gaps(known: list[bool], longest: int) -> None:
    line = np.arange(len(known), dtype=np.float32)[:, None] * 2 + 1
    values = np.where(np.array(known)[:, None], line, np.nan).astype(np.float32)
    held = values.copy()
    interpolate(values, longest)
    hold(held, longest)
    for t in range(len(known)):
        before = next((t - k for k in range(t + 1) if known[t - k]), None)
        after = next((k for k in range(t, len(known)) if known[k]), None)
        if before is not None and after is not None and after - before - 1 <= longest:
            assert values[t, 0] == pytest.approx(line[t, 0], rel=1e-5)
        else:
            assert np.isnan(values[t, 0])
        if before is not None and t - before <= longest:
            assert held[t, 0] == line[before, 0]
        else:
            assert np.isnan(held[t, 0])


# -- damage ----------------------------------------------------------------------------------------------------


def _replace_label(lines: list[bytes]) -> None:
    fields = lines[99].split(b" ")
    lines[99] = b" ".join([fields[0], b"9", *fields[2:]])


def _replace_time(lines: list[bytes]) -> None:
    fields = lines[99].split(b" ")
    lines[99] = b" ".join([lines[97].split(b" ")[0], *fields[1:]])


def _letters(lines: list[bytes]) -> None:
    lines[99] = lines[99].replace(b".", b".l", 1)


def _short(lines: list[bytes]) -> None:
    lines[99] = lines[99].rsplit(b" ", 1)[0]


def _truncated(lines: list[bytes]) -> None:
    del lines[99:]
    lines[98] = lines[98][:200]


def _line_end(lines: list[bytes]) -> None:
    lines[99] += b"\r"


def _no_label(lines: list[bytes]) -> None:
    fields = lines[99].split(b" ")
    lines[99] = b" ".join([fields[0], b"NaN", *fields[2:]])


@pytest.mark.parametrize(
    ("damage", "row", "expected"),
    [
        (_replace_label, 100, "activity 9, expected one of 0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24"),
        (_no_label, 100, "activity nan, expected one of 0"),
        (_replace_time, 100, "expected one after"),
        (_letters, 100, "expected a number"),
        (_short, 100, "53 columns, expected 54"),
        (_truncated, 99, "columns, expected 54"),
        (_line_end, 100, "line ends with CRLF, expected LF as in row 1"),
    ],
)
def test_damage_is_refused_in_one_line_with_file_row_and_expectation(
    pamap2_file: Path, damage: Callable[[list[bytes]], None], row: int, expected: str
) -> None:
    data = Pamap2(pamap2_file.parent)
    lines = pamap2_file.read_bytes().split(b"\n")
    damage(lines)
    pamap2_file.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        next(data.recordings("101"))
    message = str(caught.value)
    assert "subject101.dat" in message and f"row {row}: " in message and expected in message
    assert "\n" not in message


def _mhealth_label(lines: list[bytes]) -> None:
    lines[99] = lines[99].rsplit(b"\t", 1)[0] + b"\t13"


def _mhealth_short(lines: list[bytes]) -> None:
    lines[99] = lines[99].rsplit(b"\t", 1)[0]


def _mhealth_long(lines: list[bytes]) -> None:
    lines[99] += b"\t1"


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("damage", "row", "expected"),
    [
        (_mhealth_label, 100, "activity 13, expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
        (_letters, 100, "expected a number"),
        (_mhealth_short, 100, "23 columns, expected 24"),
        (_mhealth_long, 100, "25 columns, expected 24"),
        (_truncated, 99, "the line is cut off"),
        (_line_end, 100, "line ends with CRLF, expected LF as in row 1"),
        (list.clear, None, "holds no rows, expected 24 columns"),
    ],
)
def test_the_same_damage_is_refused_in_mhealth_from_a_folder_and_from_a_zip(
    written: Path,
    tmp_path: Path,
    damage: Callable[[list[bytes]], None],
    row: int | None,
    expected: str,
    packed: bool,
) -> None:
    lines = (written / "mhealth/MHEALTHDATASET/mHealth_subject1.log").read_bytes().split(b"\n")
    damage(lines)
    name, place = "MHEALTHDATASET/mHealth_subject1.log", tmp_path / "set"
    if packed:
        place = tmp_path / "set.zip"
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, b"\n".join(lines))
    else:
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        list(Mhealth(place).recordings("1"))
    where = f"mHealth_subject1.log, row {row}: " if row else "mHealth_subject1.log: "
    assert where in str(caught.value) and expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_zip_member_is_named_and_nothing_of_it_is_used(pamap2_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "p.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.write(pamap2_file, "Protocol/subject101.dat")
    damaged = bytearray(place.read_bytes())
    at = damaged.rindex(b"1 0 0 0")
    damaged[at] = ord("2")  # still a number: only the member's sum tells
    place.write_bytes(damaged)
    with pytest.raises(DataError, match=r"p\.zip!Protocol/subject101\.dat: cannot be read \(Bad CRC-32"):
        list(Pamap2(place).recordings("101"))


def test_an_empty_file_and_a_file_cut_anywhere_are_refused(written: Path, tmp_path: Path) -> None:
    text = (written / "mhealth/MHEALTHDATASET/mHealth_subject1.log").read_bytes()
    file = tmp_path / "mHealth_subject1.log"
    for cut_at in (1, 57, len(text) // 2, len(text) - 1):
        file.write_bytes(text[:cut_at] + b"" if text[cut_at - 1 : cut_at] != b"\n" else text[: cut_at - 1])
        with pytest.raises(DataError, match=r"mHealth_subject1\.log, row \d+: "):
            next(Mhealth(tmp_path).recordings("1"))
    file.write_bytes(b"")
    with pytest.raises(DataError, match="holds no rows, expected 24 columns"):
        next(Mhealth(tmp_path).recordings("1"))


def test_two_files_for_one_subject_and_a_zip_of_something_else_are_refused(written: Path, tmp_path: Path) -> None:
    file = written / "pamap2/Protocol/subject101.dat"
    for folder in ("a", "b"):
        (tmp_path / "twice" / folder).mkdir(parents=True)
        (tmp_path / "twice" / folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"two files for subject 101 \(a/subject101.dat and b/subject101.dat\)"):
        Pamap2(tmp_path / "twice")
    with zipfile.ZipFile(tmp_path / "wrong.zip", "w") as packed:
        packed.write(file, "Optional/subject101.dat")
    with pytest.raises(DataError, match=r"wrong\.zip: holds none of the recordings, expected files like Protocol"):
        Pamap2(tmp_path / "wrong.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as packed:
        packed.write(tmp_path / "wrong.zip", "PAMAP2_Dataset.zip")
    with pytest.raises(DataError, match=r"unpack PAMAP2_Dataset\.zip first, or let `relief data fetch` do it"):
        Pamap2(tmp_path / "outer.zip")


def test_what_a_broken_off_fetch_left_behind_is_not_taken_for_recordings(pamap2_file: Path) -> None:
    left = pamap2_file.parent / ".unpacking-x" / "Protocol" / "subject102.dat"
    left.parent.mkdir(parents=True)
    left.write_bytes(pamap2_file.read_bytes()[:1000])
    assert Pamap2(pamap2_file.parent).subjects() == ("101",)


# -- the real ones ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[Path]:
    root = os.environ.get("RELIEF_DATA")
    if not root or not Path(root, "pamap2").is_dir() or not Path(root, "mhealth").is_dir():
        pytest.skip("needs real recordings: set RELIEF_DATA to a folder that holds pamap2/ and mhealth/")
    yield Path(root)


def test_the_real_subject_109_is_read_to_the_last_row(real: Path) -> None:
    data = find("pamap2").dataset
    (recording,) = data.recordings("109")
    assert len(recording.labels) == -(-8477 // 3)
    rope_jumping = data.activities.index("rope_jumping")
    assert set(recording.labels) == {UNLABELLED, rope_jumping}
    assert (recording.labels == rope_jumping).sum() == pytest.approx(6391 / 3, abs=1)
    assert not any(np.isnan(s).any() for s in recording.streams.values())
    assert 9.0 < np.median(np.linalg.norm(recording.streams["chest_acc"], axis=1)) < 20.0
    assert 100 < np.median(recording.streams["heart_rate"]) < 200
    windows = cut([recording], data)
    assert len(windows) == 23 and windows.dropped == 0


def test_the_real_mhealth_excerpt_has_two_sensors_and_no_window_across_its_recordings(real: Path) -> None:
    data = find("mhealth").dataset
    if len(data.modalities) != 2:
        pytest.skip("RELIEF_DATA holds the whole MHEALTH, this is about the excerpt of two sensors")
    assert [m.name for m in data.modalities] == ["chest_acc", "arm_gyro"]
    assert data.subjects() == tuple("12345678")
    windows = cut((r for s in data.subjects() for r in data.recordings(s)), data)
    assert windows.dropped == 0 and len(windows) > 4000
    assert set(windows.y) == set(range(12))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_the_longest_file_of_pamap2_replays_within_300_mib(written: Path, tmp_path: Path) -> None:
    rows = [row[1:] for row in raw(written / "pamap2/Protocol/subject101.dat")]
    tails = [" ".join(row) for row in rows]
    file = tmp_path / "subject102.dat"
    with file.open("w") as out:
        for n in range(447_000):
            out.write(f"{5 + n / 100:.2f} {tails[n % len(tails)]}\n")
    assert file.stat().st_size > 150e6
    code = (
        "import sys; from pathlib import Path; from sensors.pamap2 import Pamap2\n"
        "from sensors.replay import ReplaySource\n"
        "source = ReplaySource(Pamap2(Path(sys.argv[1])), '102', speed=float('inf'), piece_s=1.0)\n"
        "source.open(); print(sum(iter(lambda: len(source.read() or ()), 0)))\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, timeout=100
    )
    played, kib = map(int, said.stdout.split())
    file.unlink()
    assert played == 149_000
    assert kib < 300 * 1024
