"""Decimal numbers in bytes, many at once and without a loop in Python, exactly as float() reads them.

Where each number begins, ends and has its point is found for a whole chunk; up to eight digits become an integer inside
one 64-bit word (pairs, then fours, then eights); one division by a power of ten puts the point back. Integers below
2^53 and powers up to 10^8 are exact, so the quotient is the double nearest to the text. The few tokens of another form
(exponents, more digits) are given to float() itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]

_WORD = 8
_PAD = b"0" * _WORD
_NEWLINE, _MINUS, _POINT, _SLASH, _NINE = b"\n-./9"
_NAN = int.from_bytes(b"nan", "little")
# The last n characters of a word, whose first one is the lowest byte; and of each of them the digit.
_LAST = np.array([(1 << 64) - (1 << 8 * (_WORD - n)) for n in range(_WORD + 1)], np.uint64)
_KEEP = _LAST & np.uint64(0x0F0F0F0F0F0F0F0F)
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


def numbers(lines: bytes, form: Form) -> Table | None:
    """(rows, width) of whole lines that end in LF, or None where anything is not as it should be."""
    tokens = _Tokens.of(_PAD + lines, form)
    return None if tokens is None else tokens.values(form)


def keep_the_heap() -> None:
    """Let glibc keep the memory that `numbers` uses and frees for every chunk.

    It gives memory back to the system as soon as 128 KB are free at the heap's end and then gets it page by page again,
    which is half of the time. Freeing one large block, never touched, raises that limit to twice the block's size.
    """
    np.empty(1 << 24, np.uint8)


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
        marking ^= characters == _MINUS
        marks = np.flatnonzero(marking)
        kind = characters[marks]
        separators = np.flatnonzero(kind != _POINT)
        end = marks[separators]
        if not _rectangular(kind[separators], form):
            return None
        start = np.empty_like(end)
        start[0], start[1:] = _WORD, end[:-1] + 1
        first = characters[start]
        negative, missing = first == _MINUS, (first | 32) == ord("n")
        separators -= 1  # now the mark before: the number's point, or where the number before ended
        pointed = kind[separators] == _POINT
        pointed[0] = separators[0] >= 0
        point = np.where(pointed, marks[separators], end)
        tokens = cls(text, start, point, end, negative, pointed, missing, [])
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
            where = np.flatnonzero(strange)
            small = characters[where] | 32
            where = where[(small != ord("n")) & (small != ord("a"))]
            self.odd = np.unique(np.searchsorted(self.end, where)).tolist()
            for token in map(self.token, self.odd):
                strangers -= sum(c > _NINE or c == _SLASH for c in token)
                minuses -= token.count(b"-", 1)
        return bool(strangers == 0 and minuses == 0 and points == np.count_nonzero(self.pointed))

    def _words(self) -> npt.NDArray[np.uint64]:
        """The eight characters from every position on, without copying."""
        words: npt.NDArray[np.uint64] = np.ndarray((len(self.text) - _WORD + 1,), "<u8", self.text, strides=(1,))
        return words

    def token(self, n: int) -> bytes:
        return self.text[int(self.start[n]) : int(self.end[n])]

    def values(self, form: Form) -> Table | None:
        """(rows, width) of what is wanted; None where an odd token is no number."""
        odd = {n: as_number(self.token(n)) for n in self.odd}
        if None in odd.values():
            return None
        wanted = _wanted(len(self.end), form)
        missing: npt.NDArray[np.bool_] = self.missing if form.use is None else self.missing[wanted]
        if np.count_nonzero(missing) > missing.size // 4:  # absent sensors: worth picking the others out
            values = np.full(missing.shape, np.nan)
            here = np.flatnonzero(~missing)
            values[here] = self._read(wanted[here])
        else:
            values = self._read(None if form.use is None else wanted)
            values[np.flatnonzero(missing)] = np.nan
        table = values.reshape(-1, form.width)
        for n, number in odd.items():
            row, column = divmod(n, form.columns)
            if form.use is None or column in form.use:
                table[row, column if form.use is None else form.use.index(column)] = number
        return table

    def _read(self, which: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float64]:
        """The numbers of these tokens (None: of all); odd ones come out as nonsense."""

        def of(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return values if which is None else values[which]

        end, point, negative, pointed = of(self.end), of(self.point), of(self.negative), of(self.pointed)
        whole = point - of(self.start)
        whole -= negative
        fraction = end - point
        fraction -= pointed
        digits = whole + fraction
        wide = np.flatnonzero(digits >= _WORD)  # with their point they do not fit into one word
        slow = wide[(whole[wide] > _WORD) | (fraction[wide] > _WORD)]
        fraction[slow] = whole[slow] = digits[wide] = 0
        words = self._words()
        mantissa = _integers(_pointless(words[end - _WORD], fraction, pointed), digits)
        if len(wide):
            mantissa[wide] = _integers(words[point[wide] - _WORD], whole[wide]) * _TENS[fraction[wide]]
            mantissa[wide] += _integers(words[end[wide] - _WORD], fraction[wide])
        values = mantissa.astype(np.float64)
        values /= _FLOAT_TENS[fraction]
        values.view(np.uint64)[...] |= negative.astype(np.uint64) << np.uint64(63)  # the sign, of -0 as well
        for n in slow.tolist():
            values[n] = as_number(self.token(n if which is None else int(which[n]))) or 0.0
        return values


@lru_cache(maxsize=4)
def _wanted(tokens: int, form: Form) -> npt.NDArray[np.int64]:
    """Which of a chunk's tokens lie in the columns in use; chunks of a file often have the same number of rows."""
    every = np.arange(tokens)
    return every if form.use is None else every.reshape(-1, form.columns)[:, form.use].ravel()


def _pointless(
    words: npt.NDArray[np.uint64], fraction: npt.NDArray[np.int64], pointed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint64]:
    """The same words with the digits before the point moved up over it."""
    last = _LAST[fraction]
    moved: npt.NDArray[np.uint64] = words << (pointed.astype(np.uint64) << np.uint64(3))
    moved &= ~last
    words &= last
    moved |= words
    return moved


def _rectangular(separators: npt.NDArray[np.uint8], form: Form) -> bool:
    """Whether all rows have their delimiters and then their line end."""
    rows, rest = divmod(len(separators), form.columns)
    return bool(
        not rest
        and np.count_nonzero(separators == _NEWLINE) == rows
        and np.count_nonzero(separators == ord(form.delimiter)) == len(separators) - rows
        and np.all(separators[form.columns - 1 :: form.columns] == _NEWLINE)
    )


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


def as_number(token: bytes) -> float | None:
    """One number, or None for what is none: infinities, spaces and underscores, which float() takes, are not."""
    try:
        value = float(token)
    except ValueError:
        return None
    return None if np.isinf(value) or b"_" in token or token != token.strip() else value
