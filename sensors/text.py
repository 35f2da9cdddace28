"""Tables of numbers in text, as recordings are distributed: read fast, and refused by row where they are wrong."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from sensors.recording import DataError

Table = npt.NDArray[np.float64]


def parse_table(data: bytes, columns: int, delimiter: str, file: object, first_row: int = 1) -> Table:
    """Rows of `columns` numbers, (rows, columns) float64; `nan` in any case is a number, infinity is not.

    Line ends are LF or CRLF throughout; the last one is required, because without it the last number may have been
    cut. Raises DataError naming `file`, the row (counted from `first_row`) and what was expected.
    """
    if not data:
        return np.empty((0, columns))
    plain = data.replace(b"\r\n", b"\n") if b"\r" in data else data
    if plain.endswith(b"\n") and b"\r" not in plain and (plain is data or plain.count(b"\n") == data.count(b"\r\n")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns where it stopped in the middle
            try:
                table = _fast(plain, columns, delimiter)
            except (ValueError, DeprecationWarning):
                table = None
        if table is not None:
            return table
    raise _complaint(data, columns, delimiter, file, first_row)


def _fast(plain: bytes, columns: int, delimiter: str) -> Table | None:
    """The table, or None where any row has another number of columns."""
    characters = np.frombuffer(plain, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    separators = np.flatnonzero((characters == ord(delimiter)) | (characters == ord("\n")))
    if len(separators) != len(ends) * columns or not np.array_equal(separators[columns - 1 :: columns], ends):
        return None
    values = np.fromstring(plain.replace(b"\n", delimiter.encode()), sep=delimiter)
    return values.reshape(-1, columns) if values.size == len(separators) and not np.isinf(values).any() else None


def _complaint(data: bytes, columns: int, delimiter: str, file: object, first_row: int) -> DataError:
    """Read slowly to find the first row that is wrong."""
    lines = data.split(b"\n")
    crlf = lines[0].endswith(b"\r")
    for row, line in enumerate(lines[:-1], first_row):
        if line.endswith(b"\r") != crlf:
            first, here = ("CRLF", "LF") if crlf else ("LF", "CRLF")
            return DataError(file, f"line ends with {here}, expected {first} as in row {first_row}", row)
        wrong = _wrong(line.removesuffix(b"\r"), columns, delimiter)
        if wrong:
            return DataError(file, wrong, row)
    wrong = _wrong(lines[-1], columns, delimiter)
    return DataError(
        file, wrong or "the line is cut off, expected a line end after the last number", first_row + len(lines) - 1
    )


def _wrong(line: bytes, columns: int, delimiter: str) -> str:
    """What is wrong with one line, or nothing."""
    tokens = line.decode("ascii", "replace").split(delimiter)
    if len(tokens) != columns:
        return f"{len(tokens)} columns, expected {columns}"
    for column, token in enumerate(tokens, 1):
        try:
            value = float(token)
        except ValueError:
            value = float("inf")
        if np.isinf(value) or "_" in token or token != token.strip():
            return f"column {column} is {token[:20]!r}, expected a number"
    return ""
