"""Work is declined where the board is too hot or its battery too low, by what its files say."""

from __future__ import annotations

from pathlib import Path

from device_runtime.condition import Condition
from device_runtime.power import Limits


def board(root: Path, milli: int, percent: int, status: str = "Discharging") -> Path:
    zone, supply = root / "class/thermal/thermal_zone0", root / "class/power_supply/BAT0"
    for folder in (zone, supply):
        folder.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text(f"{milli}\n")
    (supply / "type").write_text("Battery\n")
    (supply / "capacity").write_text(f"{percent}\n")
    (supply / "status").write_text(f"{status}\n")
    return root


def test_a_cool_board_with_charge_works(tmp_path):
    condition = Condition(Limits(), board(tmp_path, 50_000, 80))
    assert condition.look() == ""
    assert condition.celsius == {"cpu-thermal": 50.0}


def test_a_hot_board_says_which_zone(tmp_path):
    assert Condition(Limits(), board(tmp_path, 90_100, 80)).look() == "too hot: cpu-thermal 90.1 C, limit 85 C"


def test_a_low_battery_matters_only_while_it_is_drained(tmp_path):
    assert Condition(Limits(), board(tmp_path / "a", 50_000, 11)).look() == "battery low: 11 %, limit 20 %"
    assert Condition(Limits(), board(tmp_path / "b", 50_000, 11, "Charging")).look() == ""


def test_the_battery_of_a_mouse_is_not_the_boards(tmp_path):
    board(tmp_path, 50_000, 80)
    mouse = tmp_path / "class/power_supply/A_mouse"  # read first
    mouse.mkdir()
    for name, text in {"type": "Battery", "scope": "Device", "capacity": "5", "status": "Discharging"}.items():
        (mouse / name).write_text(f"{text}\n")
    condition = Condition(Limits(), tmp_path)
    assert condition.look() == ""
    assert condition.battery.percent == 80
    (tmp_path / "class/power_supply/BAT0/scope").write_text("System\n")
    (tmp_path / "class/power_supply/BAT0/capacity").write_text("11\n")
    assert "battery low" in condition.look()


def test_a_machine_without_any_of_it_works(tmp_path):
    assert Condition(Limits(), tmp_path).look() == ""
