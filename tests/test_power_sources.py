"""Power without jtop: the board's own monitors, RAPL and the estimate, on trees that look like theirs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.power import (
    Battery,
    EstimateMonitor,
    Limits,
    PowerError,
    RaplMonitor,
    SysfsMonitor,
    battery,
    find,
    temperatures,
)
from device_runtime.power.condition import nvpmodel_mode
from device_runtime.power.estimate import recognise
from device_runtime.power.rails import TOTALS as TOTAL_RAILS
from device_runtime.power.rails import UNKNOWN, total_rails
from device_runtime.power.rapl import wrapped
from tests.emulated_board import BOARDS, TOTALS, write_board


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_sysfs_gives_each_boards_total_without_counting_a_rail_twice(tmp_path: Path, board: str) -> None:
    write_board(tmp_path, BOARDS[board])
    monitor = SysfsMonitor(tmp_path)
    monitor.open()
    sample = monitor.read()
    monitor.close()
    assert sample.watts == pytest.approx(TOTALS[board])
    assert sample.source == ("ina238" if board == "AGX Thor" else "ina3221") and sample.measured
    assert not any("NC" in rail or "shunt" in rail for rail in sample.rails)
    assert sample.temperatures == {"cpu-thermal": 48.5, "gpu-thermal": 47.0}


def test_jetpack_4_paths_are_read_in_milliwatts(tmp_path: Path) -> None:
    device = tmp_path / "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    device.mkdir(parents=True)
    (device.parent / "name").write_text("ina3221x\n")
    for number, (rail, power) in enumerate({"POM_5V_IN": 2400, "POM_5V_GPU": 300, "POM_5V_CPU": 700}.items()):
        (device / f"rail_name_{number}").write_text(f"{rail}\n")
        (device / f"in_power{number}_input").write_text(f"{power}\n")
    monitor = SysfsMonitor(tmp_path)
    monitor.open()
    sample = monitor.read()
    monitor.close()
    assert sample.watts == pytest.approx(2.4) and sample.summed == ("POM_5V_IN",)
    assert sample.rails == pytest.approx({"POM_5V_IN": 2.4, "POM_5V_GPU": 0.3, "POM_5V_CPU": 0.7})


def test_an_unreadable_rail_of_the_total_is_an_error_and_not_a_smaller_total(tmp_path: Path) -> None:
    write_board(tmp_path, BOARDS["AGX Orin"])
    monitor = SysfsMonitor(tmp_path)
    monitor.open()
    current = tmp_path / "bus/i2c/devices/1-0040/hwmon/hwmon3/curr3_input"
    current.write_text("")
    with pytest.raises(PowerError, match="no reading of rail VIN_SYS_5V0"):
        monitor.read()
    current.write_text("800\n")
    assert monitor.read().watts == pytest.approx(16.0)
    monitor.close()


def test_a_rail_outside_the_total_may_fail(tmp_path: Path) -> None:
    write_board(tmp_path, BOARDS["AGX Orin"])
    monitor = SysfsMonitor(tmp_path)
    monitor.open()
    (tmp_path / "bus/i2c/devices/1-0041/hwmon/hwmon4/curr2_input").write_text("?")
    assert monitor.read().watts == pytest.approx(16.0)
    monitor.close()


@given(st.sets(st.text("ABCVDIN_5", min_size=1, max_size=8), max_size=4), st.sampled_from(TOTAL_RAILS))
def test_a_total_never_sums_an_input_rail_with_what_it_feeds(
    others: set[str], known: tuple[str, tuple[str, ...]]
) -> None:
    names = others | set(known[1])
    board, summed = total_rails(names)
    assert set(summed) <= names and board != UNKNOWN
    if {"VIN", "VDD_IN", "POM_5V_IN"} & names:
        assert len(summed) == 1


def test_rapl_watts_are_differences_over_time(tmp_path: Path) -> None:
    package = powercap(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    powercap(tmp_path, "intel-rapl:0:0", "core", 900_000)
    dram = powercap(tmp_path, "intel-rapl:0:1", "dram", 50_000)
    powercap(tmp_path, "intel-rapl:1", "psys", 5_000_000)
    monitor = RaplMonitor(tmp_path)
    monitor.open()
    began = time.monotonic()
    time.sleep(0.05)
    package.write_text("3000000\n")
    dram.write_text("250000\n")
    sample = monitor.read()
    assert set(sample.rails) == {"package-0", "dram-0"}
    assert sample.counter == pytest.approx(2.2)
    assert sample.watts == pytest.approx(2.2 / (sample.t - began), rel=0.05)
    monitor.close()


def test_a_wrapped_rapl_counter_goes_on_counting(tmp_path: Path) -> None:
    package = powercap(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000)
    monitor = RaplMonitor(tmp_path)
    monitor.open()
    time.sleep(0.03)
    package.write_text("500000\n")
    assert monitor.read().counter == pytest.approx(0.328851 + 0.5, abs=1e-5)
    monitor.close()


@given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(2**32, 2**40))
def test_wrapped_differences_are_those_of_modular_arithmetic(before: int, step: int, top: int) -> None:
    assert wrapped(before, (before + step) % (top + 1), top) == step


def test_a_rapl_counter_for_root_only_says_how_to_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = powercap(tmp_path, "intel-rapl:0", "package-0", 5)
    read = Path.read_text

    def refused(path: Path) -> str:
        if path == package:  # root, which the tests may be, is never refused by a file's mode
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(PowerError, match="sudo chmod a"):
        RaplMonitor(tmp_path).open()


def test_the_estimate_follows_load_and_board_and_is_never_called_measured(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "device-tree").mkdir(parents=True)
    (proc / "device-tree/model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    (proc / "stat").write_text("cpu  0 0 0 1000 0 0 0 0 0 0\n")
    monitor = EstimateMonitor(tmp_path / "sys", proc)
    monitor.open()
    rest = monitor.read()
    (proc / "stat").write_text("cpu  100 0 0 1000 0 0 0 0 0 0\n")
    busy = monitor.read()
    monitor.close()
    board = recognise(proc)
    assert board.name == "Orin Nano"
    assert rest.watts == board.idle < busy.watts <= board.busy
    assert rest.source == "estimate" and not rest.measured and rest.rails == {}


def test_the_search_falls_through_to_the_estimate_and_says_why(tmp_path: Path) -> None:
    found = find(("ina3221", "rapl", "estimate"), root=tmp_path)
    found.monitor.close()
    assert found.monitor.source == "estimate"
    assert [source for source, _ in found.refused] == ["ina3221", "rapl"]
    assert found.report().startswith("estimate (not ina3221: no INA3221")


def test_no_source_at_all_is_one_error_with_every_reason(tmp_path: Path) -> None:
    with pytest.raises(PowerError, match=r"ina3221: no INA3221.*rapl: no package"):
        find(("ina3221", "rapl"), root=tmp_path)
    with pytest.raises(ValueError, match="power source 'wattmeter'"):
        find(("wattmeter",), root=tmp_path)


def test_temperatures_leave_out_zones_that_are_off(tmp_path: Path) -> None:
    write_board(tmp_path, BOARDS["Orin Nano"])
    assert temperatures(tmp_path) == {"cpu-thermal": 48.5, "gpu-thermal": 47.0}


def test_the_power_mode_is_taken_by_name_from_nvpmodel(tmp_path: Path) -> None:
    tool = tmp_path / "nvpmodel"
    tool.write_text("#!/bin/sh\nprintf 'NV Fan Mode:quiet\\nNV Power Mode: MAXN_SUPER\\n0\\n'\n")
    tool.chmod(0o755)
    assert nvpmodel_mode((str(tool), "-q")) == "MAXN_SUPER"
    assert nvpmodel_mode((str(tmp_path / "missing"),)) == ""
    tool.write_text("#!/bin/sh\nexec sleep 30\n")
    assert nvpmodel_mode((str(tool),), timeout=0.2) == ""


def test_heat_and_a_low_battery_are_reasons_to_decline(tmp_path: Path) -> None:
    supply = tmp_path / "class/power_supply/BAT0"
    supply.mkdir(parents=True)
    for name, value in {"type": "Battery", "capacity": "12", "status": "Discharging"}.items():
        (supply / name).write_text(f"{value}\n")
    charge = battery(tmp_path)
    assert charge == Battery(12.0, True)
    limits = Limits(max_celsius=80, min_battery=20)
    assert limits.refusal({"cpu": 60.0}, charge) == "battery low: 12 %, limit 20 %"
    assert limits.refusal({"cpu": 60.0, "gpu": 81.5}, None) == "too hot: gpu 81.5 C, limit 80 C"
    assert limits.refusal({"cpu": 60.0}, Battery(12.0, False)) == ""
    assert battery(tmp_path / "none") is None


def powercap(root: Path, zone: str, name: str, value: int) -> Path:
    """A RAPL zone of the kernel's powercap tree; returns its counter."""
    folder = root / "class/powercap" / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    return folder / "energy_uj"
