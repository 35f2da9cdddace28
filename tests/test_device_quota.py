"""A share of a core, measured: every mechanism this machine has, on a process that computes without pause."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device_runtime.quota import CGROUPS, NotHere, limit

ROOT = Path(__file__).parents[1]

BUSY = """
import sys, time
from device_runtime.quota import Busy, NotHere, limit
share, way, seconds = float(sys.argv[1]), sys.argv[2], float(sys.argv[3])
try:
    with limit(share, ways=(way,)) as quota:
        busy, until = Busy(), time.monotonic() + seconds
        with busy.work():
            while time.monotonic() < until:
                sum(range(1000))
        print(busy.share, flush=True)
except NotHere as error:
    print("not here:", error)
after = 0.0  # the best of five stretches: one alone is short enough for others to fill
for _ in range(5):
    begin, used = time.monotonic(), time.process_time()
    while time.process_time() - used < 0.1:
        sum(range(1000))
    after = max(after, 0.1 / (time.monotonic() - begin))
print(after, flush=True)
"""

# What this machine gives at that moment to a process that nobody limits, in CPU time per second.
FREE = """
import time
begin = time.monotonic()
while time.monotonic() - begin < 3.0:
    sum(range(1000))
print(time.process_time() / (time.monotonic() - begin))
"""

WAITING = """
import time
from device_runtime.quota import limit
with limit(0.5) as quota:
    print(quota.how, flush=True)
    time.sleep(60)
"""


def _state(pid: int) -> str:
    """R running, S sleeping, T stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("way", ["v2", "v1", "signals"])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_busy_process_gets_its_share_and_the_whole_core_afterwards(way, share):
    beside = subprocess.Popen([sys.executable, "-c", FREE], stdout=subprocess.PIPE, text=True)
    done = subprocess.run(
        [sys.executable, "-c", BUSY, str(share), way, "2.5"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    free = float(beside.communicate(timeout=60)[0])
    assert done.returncode == 0, done.stderr
    first, after = done.stdout.splitlines()
    if first.startswith("not here"):
        pytest.skip(f"this machine cannot limit in this way: {first}")
    # The rest of the machine may take some of the share, never add to it: a process beside tells what was to be had.
    assert 0.6 * min(share, free) < float(first) < 1.12 * share
    assert float(after) > min(1.3 * share, 0.6 * free)


def test_a_killed_process_leaves_a_group_that_the_next_one_sweeps_away():
    child = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    how = child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    if "cgroup" not in how:
        pytest.skip("cgroups cannot be made here, so none can be left behind")
    with limit(0.9):
        left = [p for p in CGROUPS.rglob("relief-*") if p.name == f"relief-{child.pid}"]
    assert left == []
    assert [p for p in CGROUPS.rglob("relief-*") if p.name == f"relief-{os.getpid()}"] == []


def test_the_governor_continues_its_process_when_it_ends_and_ends_with_it():
    governed = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    governor = subprocess.Popen([sys.executable, str(ROOT / "device_runtime/governor.py"), str(governed.pid), "0.05"])
    try:
        deadline = time.monotonic() + 10
        while _state(governed.pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _state(governed.pid) == "T"
        governor.terminate()
        governor.wait(5)
        assert _state(governed.pid) == "R"
        other = subprocess.Popen([sys.executable, str(ROOT / "device_runtime/governor.py"), str(governed.pid), "0.5"])
        governed.kill()
        governed.wait()
        assert other.wait(5) == 0
    finally:
        for process in (governor, governed):
            process.kill()
            process.wait()


def test_no_quota_touches_nothing():
    with limit(0.0) as quota:
        assert str(quota) == "not limited"


def test_version_two_of_cgroups_is_asked_with_quota_and_period(tmp_path):
    """On a tree of our own, because few test machines hand down the controller."""
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    home = tmp_path / own.lstrip("/")
    home.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory")
    group = tmp_path / f"relief-{os.getpid()}"
    group.mkdir()
    with limit(0.25, root=tmp_path, ways=("v2",)) as quota:
        assert (group / "cpu.max").read_text() == "12500 50000"
        assert (group / "cgroup.procs").read_text() == str(os.getpid())
        assert re.match("25% of a core by cgroup v2", str(quota))
    assert (home / "cgroup.procs").read_text() == str(os.getpid())


def test_a_machine_without_any_way_says_why(tmp_path):
    with (
        pytest.raises(NotHere, match=r"cgroup v2 is not mounted; cgroup v1 has no cpu hierarchy"),
        limit(0.5, root=tmp_path, ways=("v2", "v1")),
    ):
        pass
