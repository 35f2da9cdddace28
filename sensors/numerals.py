"""Decimal numbers in bytes, many at once and without a loop in Python, exactly as float() reads them.

A number and the separator behind it lie in the last sixteen characters up to that separator: two 64-bit words. In each
character one bit tells digits from the rest, so a few operations on words find the point, move the digits before it up
over it and add neighbours up to one integer (pairs, then fours, then eights). One division by a power of ten puts the
point back: integers below 2^53 and powers up to 10^22 are exact, so the quotient is the double nearest to the text. The
few tokens of another form (exponents, more characters) are given to float() itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint64]
_Places = npt.NDArray[np.int64]

_WORD = 8  # characters in a word; the first one is the lowest byte
_LONGEST = 2 * _WORD  # characters of a number behind its sign, with the separator
_NEWLINE, _MINUS, _NINE = b"\n-9"
_NAN, _THREE, _LOWER_CASE = (np.uint64(int.from_bytes(three, "little")) for three in (b"nan", b"\xff" * 3, b" " * 3))
_UP = np.uint64((1 << 8) - 1)  # times this and added to itself: moved up by a character
_STEPS = ((10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10000, 32, 0))
_BEFORE = b"0" * (_LONGEST - 1) + b"\n"  # the first number needs a window and a separator before it, too

_DIGITS = 0x1010101010101010  # of the characters that may occur in a number, digits alone have this bit
_SEPARATOR = np.uint64(1 << 60)  # that bit of the last character
# [n]: that bit in the last n of sixteen characters, in the upper and in the lower word.
_UPPER, _LOWER = (
    np.array([_DIGITS & -(1 << 8 * (_WORD - min(max(n - before, 0), _WORD))) for n in range(_LONGEST + 1)], np.uint64)
    for before in (0, _WORD)
)
# Where the bit of a point lies alone in a word, the exponent of that word as a double tells its place: the power of ten
# to divide by. The digits end behind the place of the separator, hence one more than the digits behind the point.
_TENS = np.ones(1 << 11)
for _place in range(_WORD):
    _TENS[1023 + 8 * _place + 4] = 10.0 ** (_WORD - 1 - _place)
    _TENS[1023 + 8 * _place + 3] = 10.0 ** (2 * _WORD - 1 - _place)


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
    if ord(form.delimiter) >= _MINUS:
        return None
    text = b"".join((_BEFORE, lines, b"0" * (_WORD + -len(lines) % _WORD)))
    characters, words = np.frombuffer(text, np.uint8), np.frombuffer(text, "<u8")
    separators = np.flatnonzero(characters < _MINUS)
    before, end = separators[:-1], separators[1:]  # of every number: where the separators before and behind it are
    if not _rectangular(characters.take(end), form):
        return None
    negative = characters[1:].take(before) == _MINUS
    length = end - before
    length -= negative
    upper, lower = _windows(words, end)
    values, doubtful = _values(upper, lower, length)
    values.view(np.uint64)[...] |= negative.astype(np.uint64) << np.uint64(63)  # the sign, of -0 as well
    where = np.flatnonzero(doubtful)
    is_nan = (length[where] == 4) & (upper[where] >> np.uint64(32) & _THREE | _LOWER_CASE == _NAN)
    values[where[is_nan]] = np.nan
    letters = np.count_nonzero(characters > _NINE) - 3 * np.count_nonzero(is_nan)
    minuses = np.count_nonzero(characters == _MINUS) - np.count_nonzero(negative)
    for n in where[~is_nan].tolist():
        token = text[int(before[n]) + 1 : int(end[n])]
        number = as_number(token)
        if number is None:
            return None
        values[n] = number
        letters -= sum(map(_NINE.__lt__, token))
        minuses -= token.count(b"-", 1)
    if letters or minuses or b"/" in lines:  # a letter where a point may be, such as 1e5: float() decides by row
        return None
    table = values.reshape(-1, form.columns)
    return table if form.use is None else table.take(form.use, axis=1)


def keep_the_heap() -> None:
    """Let glibc keep the memory that `numbers` uses and frees for every chunk.

    It gives memory back to the system as soon as 128 KB are free at the heap's end and then gets it page by page again,
    which is half of the time. Freeing one large block, never touched, raises that limit to twice the block's size.
    """
    np.empty(1 << 24, np.uint8)


def as_number(token: bytes) -> float | None:
    """One number, or None for what is none: infinities, spaces and underscores, which float() takes, are not."""
    try:
        value = float(token)
    except ValueError:
        return None
    return None if math.isinf(value) or b"_" in token or token != token.strip() else value


def _rectangular(separators: _Bytes, form: Form) -> bool:
    """Whether all rows have their delimiters and then their line end."""
    if len(separators) % form.columns:
        return False
    rows = separators.reshape(-1, form.columns)
    return bool((rows[:, :-1] == ord(form.delimiter)).all() and (rows[:, -1] == _NEWLINE).all())


def _windows(words: _Words, end: _Places) -> tuple[_Words, _Words]:
    """The last eight characters up to each end, and the eight before them.

    Put together from whole words, which takes half the time of reading words from any address.
    """
    at = end - (_WORD - 1)
    shift = (at & (_WORD - 1)).view(np.uint64)
    shift <<= np.uint64(3)
    at >>= 3
    upper, middle, lower = words[1:][at], words[at], words[at - 1]
    lower >>= shift
    middle_up = middle >> shift
    np.subtract(np.uint64(64), shift, out=shift)
    upper <<= shift  # by 64 where nothing of it belongs to the window: that makes 0
    middle <<= shift
    upper |= middle_up
    lower |= middle
    return upper, lower


def _values(upper: _Words, lower: _Words, length: _Places) -> tuple[Table, npt.NDArray[np.bool_]]:
    """What each window's last `length` characters spell, the separator among them; and which are no plain number.

    Plain is: at least one digit, at most one other character, at most _LONGEST characters. A character has either the
    digits' bit or it is taken for the point; letters and misplaced signs must be looked for elsewhere.
    """
    high_point, low_point = _UPPER.take(length, mode="clip"), _LOWER.take(length, mode="clip")
    high, low = upper & high_point, lower & low_point
    high_point ^= high  # the bits of what is no digit: the separator and, in either word, the point
    low_point ^= low
    point = low_point >> np.uint64(1)
    point |= high_point ^ _SEPARATOR
    doubtful = (point & (point - np.uint64(1))) != 0  # several points
    doubtful |= (high | low) == 0
    doubtful |= length > _LONGEST
    for digits, word in ((high, upper), (low, lower)):  # the bit of a digit becomes its four bits, all others are 0
        digits -= digits >> np.uint64(4)
        digits &= word
    high_point &= np.negative(high_point)  # the first of the two: without a point the separator stands for it
    low_before = low_point >> np.uint64(4)
    low_before -= np.uint64(1)  # all bits before the point, or all
    none_low = (low_before.view(np.int64) >> 63).view(np.uint64)  # all bits where the point is not in the lower word
    high_point &= none_low
    high_before = high_point >> np.uint64(4)
    high_before -= np.uint64(1)
    high_before &= none_low
    low_before &= low
    high_before &= high
    low += low_before * _UP
    high += high_before * _UP
    high += low_before >> np.uint64(56)
    low_point >>= np.uint64(1)
    high_point |= low_point
    mantissa = _integers(low)
    mantissa *= np.uint64(10**_WORD)
    mantissa += _integers(high)
    values = mantissa.view(np.int64).astype(np.float64)
    values /= _TENS[high_point.view(np.int64).astype(np.float64).view(np.int64) >> 52]
    return values, doubtful


def _integers(words: _Words) -> _Words:
    """The numbers that the digits in each word make; the words are used up.

    Neighbours are added, the earlier one times ten, then a hundred, then ten thousand: three multiplications.
    """
    for tens, shift, mask in _STEPS:
        words *= np.uint64(1 + (tens << shift))
        words >>= np.uint64(shift)
        if mask:
            words &= np.uint64(mask)
    return words
