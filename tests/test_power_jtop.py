"""jtop, the real service and the real client, over emulated boards; and everything that can go wrong with it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from device_runtime.power import JtopMonitor, Meter, PowerError, SysfsMonitor, find
from tests.emulated_board import BOARDS, TOTALS, Namespace, emulated, kill_all, parts_of, wait_for

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jtop") is None, reason="jetson-stats is not installed (extra: jetson)"
)


@pytest.fixture
def orin(tmp_path: Path) -> Iterator[Namespace]:
    with emulated(tmp_path, "AGX Orin") as namespace:
        yield namespace


def monitor_in(namespace: Namespace, **settings: float) -> JtopMonitor:
    return JtopMonitor(interval=0.5, python=namespace.python(), **settings)


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_the_total_of_each_board_counts_no_rail_twice(tmp_path: Path, board: str) -> None:
    with emulated(tmp_path, board) as namespace:
        namespace.start_service()
        monitor = monitor_in(namespace)
        try:
            monitor.open()
            sample = monitor.read()
        finally:
            monitor.close()
        assert sample.source == "jtop" and sample.measured
        assert sample.watts == pytest.approx(TOTALS[board], abs=0.003)  # the service cuts every rail to whole mW
        assert board.split()[-1] in monitor.board
        names = {name for chip in BOARDS[board] for name in chip.rails if "NC" not in name}
        assert set(sample.rails) == names and set(sample.summed) <= names
        assert sample.temperatures == {"cpu": 48.5, "gpu": 47.0}
        assert sample.mode == "MODE_30W"
        assert abs(time.monotonic() - sample.t) < 5


def test_jtop_is_the_first_choice_and_sysfs_the_next(orin: Namespace) -> None:
    orin.start_service()
    found = find(root=orin.sys, jtop_python=orin.python())
    found.monitor.close()
    assert found.monitor.source == "jtop" and found.refused == ()


def test_without_a_service_jtops_reason_is_reported_and_sysfs_is_used(orin: Namespace) -> None:
    found = find(root=orin.sys, jtop_python=orin.python())
    found.monitor.close()
    assert found.monitor.source == "ina3221"
    assert [source for source, _ in found.refused] == ["jtop"]
    assert "jtop.service is not active" in found.report()


def test_another_version_of_the_service_is_refused_by_name(orin: Namespace, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("jtop")
    assert spec is not None and spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, tmp_path / "old/jtop", ignore=shutil.ignore_patterns("__pycache__"))
    init = tmp_path / "old/jtop/__init__.py"
    init.write_text(re.sub(r'__version__ = "[^"]+"', '__version__ = "4.2.12"', init.read_text()))
    orin.start_service(tmp_path / "old")
    with pytest.raises(PowerError, match=r"Mismatch version jtop service: \[4\.2\.12\]"):
        monitor_in(orin).open()


def test_a_user_outside_the_group_is_told_so(orin: Namespace) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become a user outside the group")
    orin.start_service()
    nobody = (*orin.prefix, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable)
    if subprocess.run([*nobody, "-c", "import jtop"], capture_output=True, check=False).returncode:
        pytest.skip("this interpreter cannot be used by another user")
    with pytest.raises(PowerError, match=r"access jtop\.service"):
        JtopMonitor(python=nobody).open()


def test_a_hung_service_costs_no_more_than_the_patience(orin: Namespace) -> None:
    service = orin.start_service()
    parts_of(service)[0].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(PowerError, match="no answer within 2 s"):
        monitor_in(orin, patience=2.0).open()
    assert time.monotonic() - began < 4


def test_a_killed_service_is_noticed_and_a_new_one_is_found_again(orin: Namespace) -> None:
    service = orin.start_service()
    monitor = monitor_in(orin)
    monitor.open()
    try:
        kill_all(service)
        wait_for(lambda: isinstance(failure(monitor), PowerError), "the death to be noticed")
        orin.start_service()
        monitor.open()
        assert monitor.read().watts == pytest.approx(TOTALS["AGX Orin"])
    finally:
        monitor.close()


def test_a_frozen_reader_behind_a_live_service_is_noticed_by_its_uptime(orin: Namespace) -> None:
    service = orin.start_service()
    monitor = monitor_in(orin)
    monitor.open()
    try:
        monitor.read()
        parts_of(service)[1].send_signal(signal.SIGSTOP)
        wait_for(lambda: isinstance(failure(monitor), PowerError), "the frozen readings to be refused")
        assert "the same reading for" in str(failure(monitor)) or "stopped" in str(failure(monitor))
    finally:
        monitor.close()


def test_a_meter_goes_on_with_sysfs_when_jtop_dies(orin: Namespace) -> None:
    service = orin.start_service()
    monitor = monitor_in(orin)
    monitor.open()

    def again() -> SysfsMonitor:
        other = SysfsMonitor(orin.sys)
        other.open()
        return other

    meter = Meter(monitor, again=again)
    meter.start()
    began = meter.mark()
    wait_for(lambda: meter.since(began).joules > 5, "the first joules")
    kill_all(service)
    wait_for(lambda: "ina3221" in meter.since(meter.mark()).source, "the other source", timeout=20)
    energy = meter.stop()
    assert energy.source == "ina3221+jtop"
    assert energy.joules == pytest.approx(16.0 * energy.seconds, rel=0.01)
    assert "jtop" in meter.last_error


def test_the_child_never_outlives_its_monitor_and_jtop_stays_out_of_this_process(orin: Namespace) -> None:
    orin.start_service()
    before = {thread.name for thread in threading.enumerate()}
    monitor = monitor_in(orin)
    monitor.open()
    children = psutil.Process().children()
    monitor.close()
    monitor.close()
    assert not any(child.is_running() and "jtop_child" in " ".join(child.cmdline()) for child in children)
    assert "jtop" not in sys.modules
    assert {thread.name for thread in threading.enumerate()} == before


def test_a_python_without_jetson_stats_says_what_to_install() -> None:
    with pytest.raises(PowerError, match="jetson-stats is not installed; run: pip install"):
        JtopMonitor(python=(sys.executable, "-S")).open()


def test_a_python_that_does_not_exist_is_one_clear_error() -> None:
    with pytest.raises(PowerError, match="cannot start /no/such/python"):
        JtopMonitor(python=("/no/such/python",)).open()


def failure(monitor: JtopMonitor) -> PowerError | None:
    try:
        monitor.read()
    except PowerError as error:
        return error
    return None
