"""Tables of numbers in text, as recordings are distributed: read fast, and refused by row where they are wrong."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import IO

import numpy as np

from sensors import compiled
from sensors.numerals import Form, Table, as_number, keep_the_heap, numbers
from sensors.recording import DataError

__all__ = ["Form", "Table", "parse_table", "tables"]

Kernel = Callable[[bytes, Form], Table | None]  # whole lines that end in LF -> (rows, width), None where any is wrong

CHUNK = 1 << 17  # bytes: the arrays of a chunk stay in the processor's cache
LONGEST_LINE = 1 << 20  # bytes; a file without line ends is not read to its end
THREADS = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

# Bytes of text after which a process loads the compiled kernel. Loading takes 0.6 s of processor time and 130 MB, and
# it saves 3 to 4 ms a megabyte: by then as much as it costs has been lost without it, and who reads less, as a device
# does that plays one subject, never pays.
WORTH = 180_000_000
_read = 0  # bytes of text in this process


def tables(
    stream: IO[bytes], form: Form, file: object, chunk: int = CHUNK, kernel: Kernel | None = None
) -> Iterator[Table]:
    """The rows of a file in pieces, (rows, width) float64; `nan` in any case is a number, infinity is not.

    Line ends are LF or CRLF throughout; the last one is required, because without it the last number may have been
    cut. Chunks are read ahead on THREADS threads. Raises DataError naming `file`, the row (from 1) and what was
    expected.

    kernel    what reads the numbers; by default numpy, after WORTH bytes the compiled one where numba is installed
    """
    keep_the_heap()
    row, crlf = 1, None
    waiting: deque[tuple[bytes, Future[Table | None]]] = deque()
    source = _lines(stream, chunk)
    while True:
        lines = next(source, None)
        if lines is not None:
            if crlf is None:
                crlf = _ends_in_crlf(lines)
            reads = kernel or _kernel(len(lines))
            waiting.append((lines, _pool().submit(_parse, lines, form, crlf, reads)))
            if len(waiting) <= THREADS:
                continue
        elif not waiting:
            return
        oldest, found = waiting.popleft()
        table = _settle(found.result(), oldest, form, bool(crlf), file, row)
        yield table
        row += len(table)


@cache
def _pool() -> ThreadPoolExecutor:
    """One for the process. A reader that is given up in the middle must not wait for threads: it may be the garbage
    collector that ends it, within any thread and any lock."""
    return ThreadPoolExecutor(THREADS, "reading")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _kernel(size: int) -> Kernel:
    """What reads the next `size` bytes."""
    global _read
    _read += size
    return (_read > WORTH and compiled.kernel()) or numbers


def parse_table(data: bytes, form: Form, file: object, kernel: Kernel | None = None) -> Table:
    """All rows of a small file at once, as `tables` reads them."""
    if not data:
        return np.empty((0, form.width))
    keep_the_heap()
    crlf = _ends_in_crlf(data)
    found = _parse(data, form, crlf, kernel or _kernel(len(data)))
    return _settle(found, data, form, crlf, file, 1)


def _lines(stream: IO[bytes], chunk: int) -> Iterator[bytes]:
    """The file in pieces of whole lines; what is left behind the last line end comes last."""
    rest = b""
    while fresh := stream.read(chunk):
        data = rest + fresh
        end = data.rfind(b"\n") + 1
        rest = data[end:]
        if end:
            yield data[:end]
        elif len(rest) > LONGEST_LINE:
            break
    if rest:
        yield rest


def _ends_in_crlf(lines: bytes) -> bool:
    """Whether the first line does."""
    end = lines.find(b"\n")
    return end > 0 and lines[end - 1 : end] == b"\r"


def _parse(lines: bytes, form: Form, crlf: bool, kernel: Kernel) -> Table | None:
    """The numbers of whole lines, or None where anything is wrong."""
    if not lines.endswith(b"\n"):
        return None
    if b"\r" in lines:
        newlines = lines.count(b"\n")
        if not crlf or lines.count(b"\r\n") != newlines or lines.count(b"\r") != newlines:
            return None
        lines = lines.replace(b"\r\n", b"\n")
    elif crlf:
        return None
    return kernel(lines, form)


def _settle(found: Table | None, lines: bytes, form: Form, crlf: bool, file: object, first_row: int) -> Table:
    """What was found; where nothing was, the first row that is wrong, or what only float() understands (1e+05)."""
    if found is not None:
        return found
    rows = []
    *whole, rest = lines.split(b"\n")
    for row, line in enumerate(whole, first_row):
        if line.endswith(b"\r") != crlf:
            first, here = ("CRLF", "LF") if crlf else ("LF", "CRLF")
            raise DataError(file, f"line ends with {here}, expected {first} as in row 1", row)
        line = line.removesuffix(b"\r")
        if wrong := _wrong(line, form):
            raise DataError(file, wrong, row)
        rows.append([float(token) for token in line.split(form.delimiter.encode())])
    if rest:
        wrong = _wrong(rest.removesuffix(b"\r"), form)
        cut = "the line is cut off, expected a line end after the last number"
        raise DataError(file, wrong or cut, first_row + len(whole))
    table = np.array(rows)
    return table if form.use is None else table[:, form.use]


def _wrong(line: bytes, form: Form) -> str:
    """What is wrong with one line, or nothing."""
    tokens = line.split(form.delimiter.encode())
    if len(tokens) != form.columns:
        return f"{len(tokens)} columns, expected {form.columns}"
    for column, token in enumerate(tokens, 1):
        if as_number(token) is None:
            return f"column {column} is {token[:20].decode('ascii', 'replace')!r}, expected a number"
    return ""
