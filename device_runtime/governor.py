"""Keeps another process at a share of one core by SIGSTOP and SIGCONT. Run as a script: governor.py PID SHARE.

Only the standard library, so that it is small; it looks at the process's CPU clock and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

PERIOD = 0.05  # seconds of its share that a process may save up
TICK = 0.004  # seconds between two looks at a busy process
REST = 0.02  # seconds between two looks at an idle one


def cpu_clock(pid: int) -> int:
    """The id of another process's CPU clock (Linux: the kernel's MAKE_PROCESS_CPUCLOCK, scheduler clock)."""
    return (~pid << 3) | 2


def govern(pid: int, share: float) -> None:
    """Until the process is gone. ProcessLookupError and OSError are its end."""
    clock = cpu_clock(pid)
    used, at, credit = time.clock_gettime(clock), time.monotonic(), share * PERIOD
    while True:
        idle = credit >= share * PERIOD
        time.sleep(REST if idle else TICK)
        fresh, now = time.clock_gettime(clock), time.monotonic()
        credit = min(share * PERIOD, credit + share * (now - at) - (fresh - used))
        used, at = fresh, now
        if credit < 0:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(-credit / share)
            os.kill(pid, signal.SIGCONT)


def _end(*_: object) -> None:
    raise SystemExit


def main() -> None:
    pid, share = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with contextlib.suppress(OSError):
            govern(pid, share)
    finally:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
