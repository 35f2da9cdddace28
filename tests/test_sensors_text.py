"""The fast readers of numbers give what float() gives, or the row that is wrong."""

from __future__ import annotations

import gc
import io
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors import compiled, text
from sensors.numerals import Table, numbers
from sensors.recording import DataError
from sensors.text import Form, Kernel, parse_table, tables

plain = st.from_regex(r"-?([0-9]{1,10}(\.[0-9]{0,10})?|\.[0-9]{1,10})", fullmatch=True)
tokens = (
    plain | st.floats(allow_infinity=False).map(str) | st.sampled_from(["nan", "NaN", "1e+05", "-2.5E-7", "-0", "0.0"])
)
delimiters = st.sampled_from([" ", "\t", ",", ";"])

KERNELS = ["numpy", "compiled"]


def kernel_called(name: str) -> Kernel:
    if name == "numpy":
        return numbers
    pytest.importorskip("numba", reason="needs numba: pip install 'relief-edge[fast]'")
    found = compiled.kernel()
    assert found is not None
    return found


@pytest.mark.parametrize("name", KERNELS)
@given(st.integers(1, 5), delimiters, st.sampled_from(["\n", "\r\n"]), st.data())
@settings(deadline=None)
def test_every_number_is_what_float_makes_of_it(
    name: str, columns: int, delimiter: str, end: str, data: st.DataObject
) -> None:
    kernel = kernel_called(name)
    rows = data.draw(st.lists(st.lists(tokens, min_size=columns, max_size=columns), max_size=12))
    text = "".join(delimiter.join(row) + end for row in rows).encode()
    expected = np.array([[float(t) for t in row] for row in rows]).reshape(-1, columns)
    assert np.array_equal(parse_table(text, Form(columns, delimiter), "f", kernel), expected, equal_nan=True)
    chunk = data.draw(st.integers(1, 40))
    pieces = list(tables(io.BytesIO(text), Form(columns, delimiter), "f", chunk, kernel))
    assert np.array_equal(np.concatenate([np.empty((0, columns)), *pieces]), expected, equal_nan=True)
    use = tuple(data.draw(st.lists(st.integers(0, columns - 1), unique=True, min_size=1)))
    assert np.array_equal(
        parse_table(text, Form(columns, delimiter, use), "f", kernel), expected[:, use], equal_nan=True
    )


@pytest.mark.parametrize("name", KERNELS)
@given(st.lists(st.lists(plain, min_size=3, max_size=3), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_one_changed_character_never_passes_for_the_same_table_unless_float_agrees(
    name: str, rows: list[list[str]], data: st.DataObject
) -> None:
    text = bytearray("".join(" ".join(row) + "\n" for row in rows).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.sampled_from(b"0159.-+eE nN\tax_/:\r\n\x00\xff,"))
    try:
        table = parse_table(bytes(text), Form(3, " "), "f", kernel_called(name))
    except DataError as error:
        assert error.row is not None and str(error).startswith(f"f, row {error.row}: ")
        return
    lines = bytes(text).decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    expected = [[float(t) for t in line.split(" ")] for line in lines]
    assert np.array_equal(table, np.array(expected), equal_nan=True)
    assert all(len(row) == 3 for row in expected) and not np.isinf(table).any()


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("1 2\n3\n", 2, "1 columns, expected 2"),
        ("1 2\n3 4 5\n", 2, "3 columns, expected 2"),
        ("1 2\n\n", 2, "1 columns, expected 2"),
        ("1 2\n3 4o\n", 2, "column 2 is '4o', expected a number"),
        ("1 2\n3 \n", 2, "column 2 is '', expected a number"),
        ("1 2\n3 -\n", 2, "column 2 is '-', expected a number"),
        ("1 2\n3 1.2.3\n", 2, "column 2 is '1.2.3'"),
        ("1 2\n3 nane\n", 2, "column 2 is 'nane'"),
        ("1 2\n3 inf\n", 2, "column 2 is 'inf'"),
        ("1 2\n3 1_0\n", 2, "column 2 is '1_0'"),
        ("1 2\n3,4\n", 2, "1 columns, expected 2"),
        ("1 2\r\n3 4\n", 2, "line ends with LF, expected CRLF as in row 1"),
        ("1 2\n3 4\r\n", 2, "line ends with CRLF, expected LF as in row 1"),
        ("1 2\n3 4", 2, "the line is cut off"),
        ("1 2\n3", 2, "1 columns, expected 2"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_wrong_is_said_with_its_row(text: str, row: int, expected: str, name: str, chunk: int) -> None:
    with pytest.raises(DataError) as caught:
        list(tables(io.BytesIO(text.encode()), Form(2, " "), "some.dat", chunk, kernel_called(name)))
    assert f"some.dat, row {row}: " in str(caught.value) and expected in str(caught.value)


@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_number_in_a_column_that_nobody_wants_is_still_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"row 2: column 1 is '1\.x'"):
        parse_table(b"1 2\n1.x 3\n", Form(2, " ", (1,)), "f", kernel_called(name))


def outcome(name: str, whole: bytes, form: Form, chunk: int = 1 << 17) -> tuple[bytes, tuple[int, ...]] | str:
    """The bits and shape of what is read, or the refusal."""
    try:
        found = list(tables(io.BytesIO(whole), form, "f", chunk, kernel_called(name)))
    except DataError as error:
        return str(error)
    table: Table = np.concatenate([np.empty((0, form.width)), *found])
    table[np.isnan(table)] = np.nan  # their sign is nobody's
    return table.tobytes(), table.shape


digits = st.from_regex(r"-?[0-9]{0,22}(\.[0-9]{0,22})?", fullmatch=True)


@given(st.integers(1, 4), delimiters, st.data())
@settings(deadline=None, max_examples=200)
def test_both_kernels_give_the_same_bits_or_the_same_refusal(columns: int, delimiter: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(tokens | digits, min_size=columns, max_size=columns), max_size=8))
    whole = bytearray("".join(delimiter.join(row) + "\n" for row in rows).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(whole)))
        more = data.draw(st.sampled_from([b"", b"\n", b"\r\n", b"\r", b"7", b"-", b".", b"e", b"n", b"\0", b"/", b":"]))
        whole[at : at + data.draw(st.integers(0, 2))] = more or delimiter.encode()
    use = data.draw(st.none() | st.lists(st.integers(0, columns - 1), unique=True, min_size=1).map(tuple))
    form, chunk = Form(columns, delimiter, use), data.draw(st.sampled_from([1, 7, 40, 1 << 17]))
    assert outcome("numpy", bytes(whole), form, chunk) == outcome("compiled", bytes(whole), form, chunk)


@pytest.mark.parametrize(
    "token",
    [
        # Near what a double holds exactly (2^53) and what an int64 holds (2^63).
        *("9007199254740992", "9007199254740993", "-9007199254740993.", "900719925474099.3", "9.223372036854775807"),
        *("9223372036854775808", "18446744073709551616", "18446744073709551617.5", "0.0000000000000000000000123"),
        # What float() alone reads, and what is a number to nobody.
        *("1e22", "1E-400", "5e-324", "-0.0", "-0", "nAn", "+1", "-NaN"),
        *(
            "",
            "-",
            ".",
            "-.",
            "--1",
            "1-",
            "inf",
            "nan1",
            "nann",
            ".nan",
            "-.nan",
            "-5nan",
            "1_0",
            "0x1",
            "1.2.3",
            "\0",
        ),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_near_a_border_is_read_as_float_does_or_refused(name: str, token: str) -> None:
    lines = f"{token} 1\n2 {token}\n".encode()
    try:
        value = float(token)
    except ValueError:
        value = math.inf
    if math.isinf(value) or "_" in token:
        at = "f, row 1: column 1 is " + repr(token)
        assert (
            outcome(name, lines, Form(2, " ")) == outcome(name, lines, Form(2, " ", (1,))) == at + ", expected a number"
        )
    else:
        table = np.array([[value, 1.0], [2.0, value]])
        table[np.isnan(table)] = np.nan
        assert outcome(name, lines, Form(2, " ")) == (table.tobytes(), (2, 2))


@pytest.mark.parametrize(
    "lines", ["1 2 3\n4\n", "1\n2 3 4\n", "1 2\n3\n4 5 6\n", "1 nan 2\n3\n", "1 1e5 2\n3\n", "nanx5\n1 2\n"]
)
@pytest.mark.parametrize("name", KERNELS)
def test_rows_of_other_lengths_are_refused_where_the_count_of_all_is_right(name: str, lines: str) -> None:
    assert "columns, expected 2" in str(outcome(name, lines.encode(), Form(2, " ")))


def test_the_compiled_kernel_is_loaded_once_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="needs numba: pip install 'relief-edge[fast]'")
    used: list[str] = []

    def of(name: str) -> Kernel:
        def kernel(lines: bytes, form: Form) -> Table | None:
            used.append(name)
            return numbers(lines, form)

        return kernel

    monkeypatch.setattr(text, "numbers", of("numpy"))
    monkeypatch.setattr(compiled, "kernel", lambda: of("compiled"))
    monkeypatch.setattr(text, "WORTH", text._read + 20)
    assert sum(map(len, tables(io.BytesIO(b"1 2\n" * 10), Form(2, " "), "f", 8))) == 10
    assert used == ["numpy"] * 2 + ["compiled"] * 3
    parse_table(b"1 2\n", Form(2, " "), "f")
    assert used[-1] == "compiled"


def test_without_a_need_for_it_numba_is_not_loaded() -> None:
    code = (
        "import sys; from sensors.text import Form, parse_table\n"
        "parse_table(b'1 2\\n' * 100_000, Form(2, ' '), 'f'); assert 'numba' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_what_is_compiled_is_kept_in_the_users_folder_where_the_package_is_read_only(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="needs numba: pip install 'relief-edge[fast]'")
    shutil.copytree(Path(compiled.__file__).parent, tmp_path / "sensors", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sensors/__pycache__").touch()  # no folder, so nobody can write into it, not even root
    code = (
        "from sensors import compiled, text\n"
        "kernel = compiled.kernel(); form = text.Form(2, ' ')\n"
        "print(kernel is not None, *text.parse_table(b'1 2\\n3 -4.5\\n', form, 'f', kernel).flat)\n"
    )

    def said(**environment: str) -> tuple[str, str]:
        there = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")} | environment
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=there, capture_output=True, text=True, timeout=90
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip(), ran.stderr

    assert said(HOME="/dev/null", USERPROFILE="/dev/null") == ("False 1.0 2.0 3.0 -4.5", "")
    assert said(HOME=str(tmp_path / "home")) == ("True 1.0 2.0 3.0 -4.5", "")
    (kept,) = (tmp_path / "home").rglob("*.nbc")
    kept.write_bytes(kept.read_bytes()[:1000])
    answer, warned = said(HOME=str(tmp_path / "home"))
    assert answer == "False 1.0 2.0 3.0 -4.5" and f"{kept.parent} is damaged, delete it" in warned


def test_nothing_gives_no_rows() -> None:
    assert parse_table(b"", Form(4, ","), "f").shape == (0, 4)
    assert math.isnan(parse_table(b"NAN 1\n", Form(2, " "), "f")[0, 0])


def test_a_reader_that_is_given_up_in_the_middle_keeps_nobody_waiting() -> None:
    text = b"1 2\n" * 5000
    for _ in range(200):
        cycle: list[object] = [tables(io.BytesIO(text), Form(2, " "), "f", 100)]
        cycle.append(cycle)
        next(cycle[0])  # type: ignore[call-overload]
    del cycle
    gc.collect()
    assert len(parse_table(text, Form(2, " "), "f")) == 5000
    assert sum(map(len, tables(io.BytesIO(text), Form(2, " "), "f", 100))) == 5000


def test_a_forked_process_can_read_too() -> None:
    text = b"1 2\n" * 50
    assert sum(map(len, tables(io.BytesIO(text), Form(2, " "), "f", 20))) == 50
    code = (
        "import io, os; from sensors.text import Form, tables\n"
        "def count(): return sum(map(len, tables(io.BytesIO(b'1 2\\n' * 50), Form(2, ' '), 'f', 20)))\n"
        "assert count() == 50\n"
        "child = os.fork()\n"
        "if not child: os._exit(count())\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 50
