"""A share of one CPU core for this very process: tiers on one machine, without a sleep that pretends.

Tried in this order: cgroup v2, cgroup v1, and SIGSTOP/SIGCONT by a small process that compares this one's CPU time with
the wall clock. Applied after imports, because they would take minutes under a small share.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 50_000  # microseconds: short, so that a step is slowed and not stopped for long
LEAST = 1_000  # microseconds: the kernel's smallest quota


class Limiter(Protocol):
    name: str

    def lift(self) -> None:
        """Take the limit away and clean up."""


class NotHere(Exception):
    """This way of limiting does not work on this machine; the text says why."""


class Quota:
    """The limit in force. `share` of one core; `how` names the mechanism; `refused` those that did not work."""

    def __init__(self, share: float, how: str, refused: tuple[str, ...] = ()) -> None:
        self.share, self.how, self.refused = share, how, refused

    def __str__(self) -> str:
        if not self.share:
            return "not limited"
        return f"{self.share:.0%} of a core by {self.how}"


@contextmanager
def limit(share: float, *, root: Path = CGROUPS, ways: tuple[str, ...] = ("v2", "v1", "signals")) -> Iterator[Quota]:
    """Limit this process to `share` of one core while the context lasts; 0: no limit. NotHere if nothing works."""
    if share <= 0:
        yield Quota(0.0, "none")
        return
    makers: dict[str, Callable[[], Limiter]] = {
        "v2": lambda: CgroupV2(share, root),
        "v1": lambda: CgroupV1(share, root),
        "signals": lambda: Governor(share),
    }
    refused = []
    for way in ways:
        try:
            limiter = makers[way]()
        except NotHere as error:
            refused.append(str(error))
            continue
        try:
            yield Quota(share, limiter.name, tuple(refused))
        finally:
            limiter.lift()
        return
    raise NotHere("no way to limit the CPU: " + "; ".join(refused))


class CgroupV2:
    """A child of the nearest cgroup that hands the cpu controller down."""

    name = "cgroup v2"

    def __init__(self, share: float, root: Path) -> None:
        own = _own_group("0::")
        if own is None or not (root / "cgroup.controllers").exists():
            raise NotHere("cgroup v2 is not mounted")
        home = root / own.lstrip("/")
        for parent in (home, *home.parents):
            if parent == root.parent:
                break
            if "cpu" not in _words(parent / "cgroup.subtree_control"):
                continue
            _sweep(parent)
            self._group, self._home = parent / _name(), home
            try:
                self._group.mkdir(exist_ok=True)
                (self._group / "cpu.max").write_text(f"{_quota(share)} {PERIOD}")
                (self._group / "cgroup.procs").write_text(str(os.getpid()))
                return
            except OSError:
                with contextlib.suppress(OSError):
                    self._group.rmdir()
        raise NotHere("cgroup v2: no cgroup above this process lets us make one with the cpu controller")

    def lift(self) -> None:
        _leave(self._group, self._home / "cgroup.procs")


class CgroupV1:
    """A child of our own cgroup in the cpu hierarchy."""

    name = "cgroup v1"

    def __init__(self, share: float, root: Path) -> None:
        own = _own_group("cpu", "cpu,cpuacct")
        mount = next((root / name for name in ("cpu", "cpu,cpuacct") if (root / name / "cgroup.procs").exists()), None)
        if own is None or mount is None:
            raise NotHere("cgroup v1 has no cpu hierarchy here")
        self._home = mount / own.lstrip("/")
        _sweep(self._home)
        self._group = self._home / _name()
        try:
            self._group.mkdir(exist_ok=True)
            (self._group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (self._group / "cpu.cfs_quota_us").write_text(str(_quota(share)))
            (self._group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._group.rmdir()
            raise NotHere(f"cgroup v1: {self._group}: {error.strerror}") from None

    def lift(self) -> None:
        _leave(self._group, self._home / "cgroup.procs")


class Governor:
    """Another process that stops and continues this one (device_runtime.governor)."""

    name = "SIGSTOP and SIGCONT"

    def __init__(self, share: float) -> None:
        script = Path(__file__).with_name("governor.py")
        command = [sys.executable, "-I", "-S", str(script), str(os.getpid()), repr(share)]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise NotHere(f"a governor cannot be started: {error}") from None

    def lift(self) -> None:
        self._process.terminate()  # it continues us on its way out
        self._process.wait()


class Busy:
    """CPU time over wall time of stretches in which this process had work: the share it really got."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    @contextmanager
    def work(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.monotonic()
        try:
            yield
        finally:
            self.cpu += time.process_time() - cpu
            self.wall += time.monotonic() - wall

    @property
    def share(self) -> float:
        """Of one core; 0 before any work."""
        return self.cpu / self.wall if self.wall else 0.0


def _quota(share: float) -> int:
    return max(LEAST, round(share * PERIOD))


def _name() -> str:
    return f"relief-{os.getpid()}"


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _own_group(*controllers: str) -> str | None:
    """Our path in the hierarchy of the first of these controllers, from /proc/self/cgroup."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::") and "0::" in controllers:
            return line[3:]
        number, _, rest = line.partition(":")
        name, _, path = rest.partition(":")
        if number != "0" and name in controllers:
            return path
    return None


def _sweep(parent: Path) -> None:
    """Remove what processes that were killed left behind."""
    for old in parent.glob("relief-*"):
        pid = old.name.removeprefix("relief-")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                old.rmdir()


def _leave(group: Path, home: Path) -> None:
    with contextlib.suppress(OSError):
        home.write_text(str(os.getpid()))
    for _ in range(50):  # the kernel may take a moment to see the group empty
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.002)
