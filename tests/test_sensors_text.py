"""The fast reader of numbers gives what float() gives, or the row that is wrong."""

from __future__ import annotations

import gc
import io
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.recording import DataError
from sensors.text import Form, parse_table, tables

plain = st.from_regex(r"-?([0-9]{1,10}(\.[0-9]{0,10})?|\.[0-9]{1,10})", fullmatch=True)
tokens = (
    plain | st.floats(allow_infinity=False).map(str) | st.sampled_from(["nan", "NaN", "1e+05", "-2.5E-7", "-0", "0.0"])
)
delimiters = st.sampled_from([" ", "\t", ",", ";"])


@given(st.integers(1, 5), delimiters, st.sampled_from(["\n", "\r\n"]), st.data())
@settings(deadline=None)
def test_every_number_is_what_float_makes_of_it(columns: int, delimiter: str, end: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(tokens, min_size=columns, max_size=columns), max_size=12))
    text = "".join(delimiter.join(row) + end for row in rows).encode()
    expected = np.array([[float(t) for t in row] for row in rows]).reshape(-1, columns)
    assert np.array_equal(parse_table(text, Form(columns, delimiter), "f"), expected, equal_nan=True)
    chunk = data.draw(st.integers(1, 40))
    pieces = list(tables(io.BytesIO(text), Form(columns, delimiter), "f", chunk))
    assert np.array_equal(np.concatenate([np.empty((0, columns)), *pieces]), expected, equal_nan=True)
    use = tuple(data.draw(st.lists(st.integers(0, columns - 1), unique=True, min_size=1)))
    assert np.array_equal(parse_table(text, Form(columns, delimiter, use), "f"), expected[:, use], equal_nan=True)


@given(st.lists(st.lists(plain, min_size=3, max_size=3), min_size=1, max_size=8), st.data())
@settings(deadline=None)
def test_one_changed_character_never_passes_for_the_same_table_unless_float_agrees(
    rows: list[list[str]], data: st.DataObject
) -> None:
    text = bytearray("".join(" ".join(row) + "\n" for row in rows).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.sampled_from(b"0159.-+eE nN\tax_/:\r\n\x00\xff,"))
    try:
        table = parse_table(bytes(text), Form(3, " "), "f")
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
def test_what_is_wrong_is_said_with_its_row(text: str, row: int, expected: str, chunk: int) -> None:
    with pytest.raises(DataError) as caught:
        list(tables(io.BytesIO(text.encode()), Form(2, " "), "some.dat", chunk))
    assert f"some.dat, row {row}: " in str(caught.value) and expected in str(caught.value)


def test_a_wrong_number_in_a_column_that_nobody_wants_is_still_refused() -> None:
    with pytest.raises(DataError, match=r"row 2: column 1 is '1\.x'"):
        parse_table(b"1 2\n1.x 3\n", Form(2, " ", (1,)), "f")


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
