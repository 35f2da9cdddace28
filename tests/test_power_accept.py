"""`relief device accept`: its report holds figures for what is there, reasons for what is not, and no owner's name."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.emulated_board import BOARDS, write_board
from tests.iio_tree import write_device
from tools import accept as acceptance
from tools.accept import MISSING, OK, Board, Finding, examine, load


@pytest.fixture
def orin(tmp_path: Path) -> Board:
    """An Orin Nano with an IMU, to look at for a second."""
    write_board(tmp_path / "sys", BOARDS["Orin Nano"])
    write_device(tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        7802000 kB\n")
    cpu = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    cpu.mkdir(parents=True)
    (cpu / "scaling_cur_freq").write_text("729600\n")
    (cpu / "cpuinfo_max_freq").write_text("1510400\n")
    (tmp_path / "sys/class/hwmon/hwmon9").mkdir()
    (tmp_path / "sys/class/hwmon/hwmon9/oc1_event_cnt").write_text("3\n")
    return Board(tmp_path / "sys", tmp_path / "proc", seconds=1.0)


def test_every_check_gives_a_finding_and_the_boards_own_figures_are_in_it(orin: Board) -> None:
    found = {f.check: f for f in examine(orin)}
    assert found["machine"].verdict == OK and found["machine"].values["memory_gib"] == 7.4
    rails = found["power by ina3221"]
    assert rails.verdict == OK and rails.values["watts_at_rest"] == pytest.approx(5.0)
    assert rails.values["summed"] == ["VDD_IN"] and set(rails.values["rails"]) == set(BOARDS["Orin Nano"][0].rails)
    assert found["power by jtop"].verdict == MISSING and found["power by jtop"].said
    assert found["power by rapl"].verdict == OK  # a Jetson has none
    assert found["sensors"].values["iio"]["imu6"]["channels"] == ["accel_x", "accel_y", "accel_z", "anglvel_z"]
    assert "give a kit" in found["inference"].said and "give a configuration" in found["configured sensors"].said


def test_load_tells_a_throttled_core_and_a_power_that_does_not_move(orin: Board) -> None:
    finding = load(orin)
    assert finding.values["watts"]["ina3221"] == {"rest": pytest.approx(5.0), "busy": pytest.approx(5.0)}
    assert "no more power under load than at rest" in finding.said
    assert "fell to 48% of its highest clock" in finding.said
    assert finding.values["overcurrent_events"] == {"oc1": 3}
    assert finding.values["celsius_after"] == {"cpu-thermal": 48.5, "gpu-thermal": 47.0}


def test_a_check_that_breaks_is_a_finding_and_not_the_end(orin: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(board: Board) -> Finding:
        raise RuntimeError("no such firmware")

    monkeypatch.setattr(acceptance, "machine", broken)
    found = list(examine(orin))
    assert found[0].verdict == MISSING and found[0].said == "RuntimeError: no such firmware"
    assert len(found) > 5


def test_the_command_writes_one_file_without_anybodys_name(tmp_path: Path) -> None:
    out = tmp_path / "acceptance.json"
    app = typer.Typer()
    app.command()(acceptance.accept)
    done = CliRunner().invoke(app, ["--seconds", "1", "--out", str(out)])
    report = json.loads(out.read_text())
    assert [f["check"] for f in report["findings"]][:2] == ["machine", "power mode"]
    assert done.exit_code == int(any(f["verdict"] == MISSING for f in report["findings"]))
    assert str(out) in done.output and platform.node() not in out.read_text()
