"""Tables of numbers in text, as recordings are distributed: read fast, and refused by row where they are wrong.

Numbers are read many at once, without a loop in Python: where each one begins, ends and has its point is found for a
whole chunk, up to eight digits are turned into an integer inside one 64-bit word (pairs, then fours, then eights), and
one division by a power of ten puts the point back. Integers below 2^53 and powers up to 10^8 are exact, so the
quotient is the double nearest to the text, the same that float() gives. The few tokens of another form (exponents, more
digits) are given to float() itself.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from sensors.recording import DataError

Table = npt.NDArray[np.float64]
CHUNK = 1 << 18  # bytes: the arrays of a chunk stay in the processor's cache

_WORD = 8
_PAD = b"0" * _WORD
_NEWLINE, _MINUS, _POINT, _SLASH, _NINE = b"\n-./9"
_NAN = int.from_bytes(b"nan", "little")
# The last n bytes of a word, first character lowest; of each byte the digit.
_KEEP = np.array([((1 << 64) - (1 << 8 * (_WORD - n))) & 0x0F0F0F0F0F0F0F0F for n in range(_WORD + 1)], np.uint64)
_STEPS = ((10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10000, 32, 0xFFFFFFFF))
_TENS = 10 ** np.arange(_WORD + 1, dtype=np.uint64)
_FLOAT_TENS = 10.0 ** np.arange(_WORD + 1)


@dataclass(frozen=True)
class Form:
    """How a file's rows look: `columns` numbers between `delimiter`s, of which those in `use` are wanted."""

    columns: int
    delimiter: str
    use: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        return self.columns if self.use is None else len(self.use)


def tables(stream: IO[bytes], form: Form, file: object, chunk: int = CHUNK) -> Iterator[Table]:
    """The rows of a file in pieces, (rows, width) float64; `nan` in any case is a number, infinity is not.

    Line ends are LF or CRLF throughout; the last one is required, because without it the last number may have been
    cut. Raises DataError naming `file`, the row (from 1) and what was expected.
    """
    row, rest, crlf = 1, b"", None
    while True:
        fresh = stream.read(chunk)
        if not fresh:
            break
        data = rest + fresh
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if not end:
            continue
        lines = data[:end]
        if crlf is None:
            crlf = lines[: lines.index(b"\n") + 1].endswith(b"\r\n")
        table = _parse(lines, form, crlf)
        if table is None:
            table = _plainly(lines, form, crlf, file, row)
        yield table
        row += len(table)
    if rest:
        wrong = _wrong(rest.removesuffix(b"\r"), form)
        raise DataError(file, wrong or "the line is cut off, expected a line end after the last number", row)


def parse_table(data: bytes, form: Form, file: object) -> Table:
    """All rows of a small file at once, as `tables` reads them."""
    found = list(tables(io.BytesIO(data), form, file))
    return np.concatenate(found) if found else np.empty((0, form.width))


def _parse(lines: bytes, form: Form, crlf: bool) -> Table | None:
    """The numbers of whole lines, or None where anything is wrong."""
    if b"\r" in lines:
        if not crlf:
            return None
        newlines = lines.count(b"\n")
        if lines.count(b"\r\n") != newlines or lines.count(b"\r") != newlines:
            return None
        lines = lines.replace(b"\r\n", b"\n")
    elif crlf:
        return None
    tokens = _Tokens.of(_PAD + lines, form)
    return None if tokens is None else tokens.values(form)


@dataclass
class _Tokens:
    """Where the numbers of a chunk lie; every array has one entry per number."""

    text: bytes
    start: npt.NDArray[np.int64]
    point: npt.NDArray[np.int64]  # end of the integer part
    end: npt.NDArray[np.int64]
    negative: npt.NDArray[np.bool_]
    pointed: npt.NDArray[np.bool_]
    missing: npt.NDArray[np.bool_]  # begins like nan
    odd: list[int]  # tokens that hold a letter and are not nan, e.g. 1e-05

    @classmethod
    def of(cls, text: bytes, form: Form) -> _Tokens | None:
        """Find them; None where rows have other shapes or characters are out of place."""
        characters = np.frombuffer(text, np.uint8)
        marking = characters <= _POINT  # separators, points, and the minus that is taken out here
        marking &= characters != _MINUS
        marks = np.flatnonzero(marking)
        kind = characters[marks]
        separators = np.flatnonzero(kind != _POINT)
        end = marks[separators]
        if len(separators) % form.columns or not _rectangular(kind[separators].reshape(-1, form.columns), form):
            return None
        start = np.empty_like(end)
        start[0], start[1:] = _WORD, end[:-1] + 1
        first = characters[start]
        negative = first == _MINUS
        pointed = kind[separators - 1] == _POINT
        pointed[0] = separators[0] > 0
        tokens = cls(
            text,
            start,
            np.where(pointed, marks[separators - 1], end),
            end,
            negative,
            pointed,
            (first | 32) == ord("n"),
            [],
        )
        return tokens if tokens._in_place(characters, len(marks) - len(separators)) else None

    def _in_place(self, characters: npt.NDArray[np.uint8], points: int) -> bool:
        """Whether every character belongs where it is; notes the odd tokens on the way."""
        digits = self.end - self.start
        digits -= self.negative
        digits -= self.pointed
        lost = np.flatnonzero(self.missing)
        spelt = self._words()[self.end[lost] - _WORD] >> np.uint64(40) | np.uint64(0x202020)  # last three, lower case
        if not digits.all() or np.any(digits[lost] != 3) or np.any(spelt != _NAN):
            return False
        strange = characters > _NINE
        strange |= characters == _SLASH
        strangers = np.count_nonzero(strange) - 3 * len(lost)
        minuses = np.count_nonzero(characters == _MINUS) - np.count_nonzero(self.negative)
        if strangers:
            small = characters | 32
            strange &= (small != ord("n")) & (small != ord("a"))
            self.odd = np.unique(np.searchsorted(self.end, np.flatnonzero(strange))).tolist()
            for token in map(self._token, self.odd):
                strangers -= sum(c > _NINE or c == _SLASH for c in token)
                minuses -= token.count(b"-", 1)
        return bool(strangers == 0 and minuses == 0 and points == np.count_nonzero(self.pointed))

    def _words(self) -> npt.NDArray[np.uint64]:
        """The eight characters from every position on, without copying."""
        words: npt.NDArray[np.uint64] = np.ndarray((len(self.text) - _WORD + 1,), "<u8", self.text, strides=(1,))
        return words

    def _token(self, n: int) -> bytes:
        return self.text[int(self.start[n]) : int(self.end[n])]

    def values(self, form: Form) -> Table | None:
        """(rows, width) of what is wanted; None where an odd token is no number."""
        odd = {n: _number(self._token(n)) for n in self.odd}
        if None in odd.values():
            return None
        wanted = np.arange(len(self.end)).reshape(-1, form.columns)
        if form.use is not None:
            wanted = wanted[:, form.use]
        present = ~self.missing[wanted]
        values = np.full(wanted.shape, np.nan)
        if present.all():
            values[...] = self._read(wanted.ravel()).reshape(wanted.shape)
        else:
            values[present] = self._read(wanted[present])
        for n, number in odd.items():
            row = n // form.columns
            values[row, wanted[row] == n] = number
        return values

    def _read(self, which: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The numbers of these tokens; odd ones come out as nonsense."""
        point, end, negative = self.point[which], self.end[which], self.negative[which]
        whole = point - self.start[which]
        whole -= negative
        fraction = end - point
        fraction -= self.pointed[which]
        long = np.flatnonzero((whole > _WORD) | (fraction > _WORD))
        whole[long] = fraction[long] = 0
        words = self._words()
        mantissa = _integers(words[point - _WORD], whole)
        mantissa *= _TENS[fraction]
        mantissa += _integers(words[end - _WORD], fraction)
        values = mantissa.astype(np.float64)
        values /= _FLOAT_TENS[fraction]
        values.view(np.uint64)[...] |= negative.astype(np.uint64) << np.uint64(63)  # the sign, of -0 as well
        for n in long.tolist():
            values[n] = _number(self._token(int(which[n]))) or 0.0
        return values


def _rectangular(separators: npt.NDArray[np.uint8], form: Form) -> bool:
    """Whether all rows have their delimiters and then their line end."""
    return bool(np.all(separators[:, :-1] == ord(form.delimiter)) and np.all(separators[:, -1] == _NEWLINE))


def _integers(words: npt.NDArray[np.uint64], digits: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The numbers that the last `digits` characters of each word spell; the words are used up.

    Neighbours are added, the earlier one times ten, then a hundred, then ten thousand: three multiplications.
    """
    words &= _KEEP[digits]
    for tens, shift, mask in _STEPS:
        words *= np.uint64(1 + (tens << shift))
        words >>= np.uint64(shift)
        words &= np.uint64(mask)
    return words


def _number(token: bytes) -> float | None:
    try:
        value = float(token)
    except ValueError:
        return None
    return None if np.isinf(value) or b"_" in token or token != token.strip() else value


def _plainly(lines: bytes, form: Form, crlf: bool, file: object, first_row: int) -> Table:
    """One number after another: finds the first row that is wrong, or reads what only float() understands (1e+05)."""
    rows = []
    for row, line in enumerate(lines.split(b"\n")[:-1], first_row):
        if line.endswith(b"\r") != crlf:
            first, here = ("CRLF", "LF") if crlf else ("LF", "CRLF")
            raise DataError(file, f"line ends with {here}, expected {first} as in row 1", row)
        line = line.removesuffix(b"\r")
        if wrong := _wrong(line, form):
            raise DataError(file, wrong, row)
        rows.append([float(token) for token in line.split(form.delimiter.encode())])
    table = np.array(rows)
    return table if form.use is None else table[:, form.use]


def _wrong(line: bytes, form: Form) -> str:
    """What is wrong with one line, or nothing."""
    tokens = line.split(form.delimiter.encode())
    if len(tokens) != form.columns:
        return f"{len(tokens)} columns, expected {form.columns}"
    for column, token in enumerate(tokens, 1):
        if _number(token) is None:
            return f"column {column} is {token[:20].decode('ascii', 'replace')!r}, expected a number"
    return ""
