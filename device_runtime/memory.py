"""This process's resident memory: how much it is, and giving back what is not needed any more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_DONTNEED = 4  # madvise's MADV_DONTNEED


def resident() -> int:
    """Bytes now; the peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trim() -> None:
    """Hand freed memory back to the system; glibc keeps what many short-lived arrays were made of."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def forget_the_start() -> None:
    """Let go of what only the start needed: garbage of imports, and the libraries' code that ran once.

    Code and constants are read from their files again where they are needed after all, 64 KB at a time and from the
    system's own cache: about a millisecond for everything that an idle device goes on using.
    """
    gc.collect()
    trim()
    with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end in list(_unwritten()):
            madvise(begin, end - begin, _DONTNEED)


def _unwritten() -> Iterator[tuple[int, int]]:
    """Addresses of mapped files that are read-only and of which this process has no changed copy of a page."""
    begin = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if "-" in head and not head.endswith(":"):
            plain = len(rest) > 4 and rest[0] in ("r-xp", "r--p") and rest[4].startswith("/")
            begin, end = (int(x, 16) for x in head.split("-")) if plain else (0, 0)
        elif head == "Anonymous:" and end and rest[0] == "0":
            yield begin, end
