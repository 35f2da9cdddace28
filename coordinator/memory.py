"""What a round frees is kept for the next one.

By itself glibc hands a round's updates back to the system and takes as much again in the next: a page fault for every
4 KB, a twentieth of the coordinator's time.
"""

from __future__ import annotations

import contextlib
import ctypes

KEPT = 32 << 20  # bytes that may stay with the process although nothing uses them
LARGE = 4 << 20  # bytes from which a single array still comes from the system and goes back to it
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for the two


def keep() -> None:
    """From now on, for the whole process; nothing where the C library is another one."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT)
        mallopt(_MMAP_THRESHOLD, LARGE)
