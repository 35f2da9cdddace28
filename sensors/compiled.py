"""The numbers of `sensors/numerals.py` by a loop over the bytes that numba compiles, where numba is installed.

Two to three times as fast as numpy, with the same numbers to the last bit: at most eighteen digits fit a 64-bit
integer, integers up to 2^53 and powers of ten up to 10^22 are exact doubles, so one division gives the double nearest
to the text. Any other token is left to float().
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sensors.numerals import Form, Table, as_number

_NEWLINE, _MINUS, _POINT, _ZERO, _N, _A, _LOWER_CASE = b"\n-.0na "
_DIGITS = 18  # decimal digits that surely fit an int64
_EXACT = 1 << 53
_TENS = 10.0 ** np.arange(_DIGITS + 1)

log = logging.getLogger("relief.sensors")


@cache
def kernel() -> Callable[[bytes, Form], Table | None] | None:
    """Whole lines, their form -> (rows, width), or None where anything is not as it should be; as `numerals.numbers`.

    None without numba, and where nothing that it compiles can be kept, because compiling takes longer than it saves.
    numba keeps it beside this file, in the user's cache folder where that is read-only, or in NUMBA_CACHE_DIR.
    """
    try:
        import numba

        scan = numba.njit(cache=True, nogil=True)(_scan)
    except (ImportError, RuntimeError):  # not there, or too old for this numpy; no folder to keep anything in
        return None

    def numbers(lines: bytes, form: Form) -> Table | None:
        if ord(form.delimiter) >= _MINUS:
            return None
        rows = lines.count(b"\n")
        table = np.empty((rows, form.width))
        odd = np.empty((rows * form.columns, 3), np.int64)  # costs nothing where nothing is written
        found, doubtful = scan(np.frombuffer(lines, np.uint8), ord(form.delimiter), _places(form), _TENS, table, odd)
        if found != rows:
            return None
        values = table.reshape(-1)
        for begin, end, at in odd[:doubtful].tolist():
            number = as_number(lines[begin:end])
            if number is None:
                return None
            if at >= 0:
                values[at] = number
        return table

    try:
        numbers(b"1\n", Form(1, ","))  # compiled, or loaded, here and not in a thread
    except Exception as error:  # a power cut leaves damaged files in numba's cache, and then anything may be raised
        log.warning(
            "reading with numpy: what numba keeps in %s is damaged, delete it (%s)", scan.stats.cache_path, error
        )
        return None
    return numbers


@cache
def _places(form: Form) -> npt.NDArray[np.int64]:
    """(columns,): where a column of the file goes in the table; -1 for one that is only checked."""
    places = np.full(form.columns, -1)
    places[list(range(form.columns) if form.use is None else form.use)] = np.arange(form.width)
    return places


def _scan(text: Any, delimiter: int, places: Any, tens: Any, table: Any, odd: Any) -> tuple[int, int]:
    """Fill `table` from `text`, which ends in LF; rows read, or -1 where a row has too few or too many columns.

    odd    (tokens, 3): begin, end and place in the flat table of what float() has to read; how many is returned, too

    Python that numba knows: no slices, no strings, and integers that stay signed.
    """
    at = row = doubtful = 0
    columns = len(places)
    while at < len(text):
        for column in range(columns):
            end = delimiter if column < columns - 1 else _NEWLINE
            begin = at
            if text[at] == _MINUS:
                at += 1
            unsigned = first = at
            mantissa = behind = 0
            digit = np.int64(text[at]) - _ZERO
            while 0 <= digit <= 9:
                mantissa = mantissa * 10 + digit  # an overflow is seen by the count of digits
                at += 1
                digit = np.int64(text[at]) - _ZERO
            digits = at - first
            if text[at] == _POINT:
                at += 1
                first = at
                digit = np.int64(text[at]) - _ZERO
                while 0 <= digit <= 9:
                    mantissa = mantissa * 10 + digit
                    at += 1
                    digit = np.int64(text[at]) - _ZERO
                behind = at - first
                digits += behind
            place = places[column]
            if text[at] == end and 0 < digits <= _DIGITS and mantissa <= _EXACT:
                if place >= 0:
                    value = mantissa / tens[behind]
                    table[row, place] = -value if text[begin] == _MINUS else value
            elif (
                at == unsigned
                and text[at] | _LOWER_CASE == _N  # the last byte is LF, so none of these lies behind the end
                and text[at + 1] | _LOWER_CASE == _A
                and text[at + 2] | _LOWER_CASE == _N
                and text[at + 3] == end
            ):
                at += 3
                if place >= 0:
                    table[row, place] = np.nan
            else:
                while text[at] != end:
                    if text[at] == _NEWLINE or text[at] == delimiter:
                        return -1, 0
                    at += 1
                odd[doubtful, 0] = begin
                odd[doubtful, 1] = at
                odd[doubtful, 2] = row * table.shape[1] + place if place >= 0 else -1
                doubtful += 1
            at += 1
        row += 1
    return row, doubtful
