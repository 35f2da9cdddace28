"""What the page knows of a fleet, and what it raises as an alarm."""

from __future__ import annotations

from typing import Any

import pytest

from tests.synthetic_fleet import SyntheticFleet
from tools.dashboard import charts
from tools.dashboard.alarms import Level, alarms
from tools.dashboard.board import RUNS, SAMPLES, Board, work
from tools.phases import standing


def plain(fleet: SyntheticFleet, **changes: Any) -> dict[str, Any]:
    said = fleet.summary()
    devices = {id: dict(d) for id, d in said.fields["devices"].items()}
    return {**said.fields, "devices": devices, "round": said.round, "epoch": said.epoch, "phase": said.phase, **changes}


def board_of(fleet: SyntheticFleet, **changes: Any) -> Board:
    board = Board("test", clock=lambda: 0.0)
    board.say(connection="", coordinator=True)
    board.take(plain(fleet, **changes))
    return board


def test_only_devices_that_changed_are_newer_than_what_was_shown() -> None:
    fleet = SyntheticFleet(6)
    board = board_of(fleet)
    assert len(board.newer(-1)) == 6
    shown = board.version
    fleet.devices["hub-1"]["state"] = "offline"
    board.take(plain(fleet))
    assert [r["id"] for r in board.newer(shown)] == ["hub-1"]
    assert board.newer(board.version) == []


def test_pictures_are_drawn_again_only_when_a_round_or_an_evaluation_is_new() -> None:
    fleet = SyntheticFleet(3)
    board = board_of(fleet)
    before = board.drawn
    board.take(plain(fleet))
    assert board.drawn == before
    fleet.open()
    fleet.finish()
    board.take(plain(fleet))
    assert board.drawn == before + 1


def test_a_page_that_comes_late_shows_the_rounds_before_it() -> None:
    fleet = SyntheticFleet(3)
    for _ in range(5):
        fleet.open()
        fleet.finish()
    options = charts.scores(board_of(fleet), dark=False, seconds=True)
    assert [len(line["data"]) for line in options["series"]] == [5, 5, 5]
    assert options["series"][0]["data"][0][0] == 1.0, "seconds count from the beginning of round 1"


def test_another_epoch_begins_a_new_record_and_keeps_the_old_one_for_comparison() -> None:
    fleet = SyntheticFleet(3)
    fleet.open()
    fleet.finish()
    board = board_of(fleet)
    for epoch in range(20, 20 + RUNS + 2):
        board.take(plain(fleet, epoch=epoch, strategy="fedavg"))
    assert board.run.strategy == "fedavg"
    assert len(board.earlier) == RUNS
    names = [line["name"] for line in charts.scores(board, dark=True, seconds=False)["series"]]
    assert "fedavg, held-out" in names


def test_a_new_run_begins_without_the_devices_of_the_one_before() -> None:
    board = board_of(SyntheticFleet(6))
    board.hear("band-2", 1.0, {"watts": 1.0})
    board.reported("band-2", "profile: done")
    shown = board.version
    board.take(plain(SyntheticFleet(3, epoch=8)))
    assert list(board.rows) == ["hub-1", "phone-1", "band-1"]
    assert board.counts() == {"ready": 3}
    assert (dict(board.telemetry), board.reports) == ({}, {})
    assert {r["id"] for r in board.newer(shown)} == set(board.rows)


def test_a_device_that_the_coordinator_no_longer_lists_is_not_counted_and_a_summary_without_any_keeps_them() -> None:
    fleet = SyntheticFleet(6)
    board = board_of(fleet)
    board.take(plain(fleet, devices={}))
    assert len(board.rows) == 6
    del fleet.devices["band-2"]
    board.take(plain(fleet))
    assert board.counts() == {"ready": 5}
    assert "band-2" not in {r["id"] for r in board.newer(-1)}


def test_a_devices_page_needs_no_summary_that_lists_it() -> None:
    pytest.importorskip("nicegui", reason="the extra dashboard is not installed")
    from tools.dashboard.device_page import DevicePage

    fleet = SyntheticFleet(3)
    board = board_of(fleet)
    board.take(plain(fleet, devices={}))  # too large for the broker with them
    seen = DevicePage.__new__(DevicePage)
    seen.board, seen.id = board, "hub-1"
    assert "<dt>windows</dt><dd>200</dd>" in seen._facts()


def test_telemetry_of_strangers_is_not_kept_and_that_of_devices_is_bounded() -> None:
    board = board_of(SyntheticFleet(3))
    board.hear("stranger", 1.0, {"watts": 1.0})
    assert "stranger" not in board.telemetry
    for n in range(SAMPLES + 10):
        board.hear("hub-1", float(n), {"watts": 7.26, "power_source": "jtop", "celsius": {"cpu": 51.0, "gpu": 54.4}})
    assert len(board.telemetry["hub-1"]) == SAMPLES
    row = board.rows["hub-1"]
    assert (row["watts"], row["source"], row["celsius"]) == (7.3, "jtop", 54.0)


def test_a_device_lags_once_it_takes_half_as_long_again_as_predicted() -> None:
    fleet = SyntheticFleet(3)
    fleet.open()
    fleet.elapsed += 0.6
    assert board_of(fleet).counts() == {"training": 3}
    fleet.elapsed += 0.6
    board = board_of(fleet)
    assert board.counts() == {"late": 3}
    assert all(one["late"] for one in board.timeline())
    assert any("Stragglers" in a.what for a in alarms(board))


def test_the_timeline_lists_who_still_trains_before_who_is_done() -> None:
    fleet = SyntheticFleet(4)
    fleet.open()
    fleet.elapsed += 0.2
    fleet.devices["hub-1"] |= {"state": "done", "round": 1, "seconds": 0.15}
    timeline = board_of(fleet).timeline(most=3)
    assert len(timeline) == 3
    assert [one["done"] for one in timeline] == [False, False, False]
    assert board_of(fleet).timeline()[-1]["id"] == "hub-1"


def test_the_sums_of_joules_and_bytes_stand_beside_the_estimate_of_the_same_rounds() -> None:
    fleet = SyntheticFleet(3)
    for _ in range(4):
        fleet.open()
        fleet.finish()
    ours, theirs = charts.spent(board_of(fleet), dark=False, what="joules")["series"]
    assert ours["data"][-1] == [4, 12.0]
    assert theirs["data"][-1] == [4, 31.2]
    assert "estimated" in theirs["name"]


def test_the_ownership_picture_has_a_cell_per_owned_modality_and_its_steps() -> None:
    fleet = SyntheticFleet(3)
    fleet.open()
    board = board_of(fleet)
    cells, foreign = (series["data"] for series in charts.ownership(board, dark=False)["series"])
    assert foreign == []
    assert len(cells) == sum(len(d["modalities"]) for d in fleet.devices.values())
    assert all(steps == fleet.devices[list(fleet.devices)[x]]["steps"][list(plain(fleet)["cohorts"])[y]]
               for x, y, steps, _ in cells)  # fmt: skip


def test_a_block_that_a_device_trains_without_its_sensor_is_shown_and_named() -> None:
    fleet = SyntheticFleet(3)
    fleet.open()
    fleet.devices["band-1"]["steps"] = {"torso": 7, "left_leg": 7, "shared": 7}  # as zero-filled FedAvg has it
    fleet.devices["band-1"]["modalities"] = ["left_leg"]
    mine = list(fleet.devices).index("band-1")
    owned, foreign = (series["data"] for series in charts.ownership(board_of(fleet), dark=False)["series"])
    assert [(y, steps) for x, y, steps, _ in owned if x == mine] == [(4, 7)]
    assert [(x, y, steps) for x, y, steps, _ in foreign] == [(mine, 0, 7)]
    assert work(fleet.devices["band-1"]) == "7 × left_leg torso"


def test_steps_that_differ_are_told_apart() -> None:
    device = {"modalities": ["a", "b", "c"], "steps": {"c": 3, "a": 9, "b": 3, "shared": 9}}
    assert work(device) == "9 × a, 3 × b c"


@pytest.mark.parametrize("what", ["joules", "bytes"])
def test_before_the_first_round_pictures_say_so_instead_of_being_empty(what: str) -> None:
    board = board_of(SyntheticFleet(3))
    assert charts.spent(board, dark=False, what=what)["title"]["text"] == "No round is done yet"
    assert charts.timeline(board, dark=False)["title"]["text"] == "No round is open"


def test_a_healthy_fleet_raises_no_alarm() -> None:
    assert alarms(board_of(SyntheticFleet(6))) == []


def test_alarms_say_what_to_do_the_most_urgent_first() -> None:
    fleet = SyntheticFleet(6)
    fleet.devices["hub-1"]["state"] = fleet.devices["band-1"]["state"] = "offline"
    fleet.devices["band-2"] |= {"state": "declined", "why": "owns no modality of the model"}
    board = board_of(fleet, alarms={"disk": "no space left"}, refused={"block torso": 3, "stale": 9})
    board.hear("hub-2", 0.0, {"celsius": {"cpu": 91.0}})
    found = alarms(board)
    assert found[0].level is Level.STOPPED and "disk" in found[0].what
    assert all(alarm.todo for alarm in found)
    text = " ".join(alarm.what for alarm in found)
    for expected in ("2 of 6 devices offline", "band-2 takes no part", "hub-2", "block torso (3)"):
        assert expected in text
    assert "stale" not in text, "late work is the ordinary course of things"


def test_a_lost_broker_and_a_dead_coordinator_are_told_apart() -> None:
    board = board_of(SyntheticFleet(3))
    board.say(coordinator=False)
    assert "coordinator is not running" in alarms(board)[0].what
    board.say(connection="refused")
    assert [a.what for a in alarms(board) if a.level is Level.STOPPED] == ["No connection to the broker: refused"]


def test_a_coordinator_that_has_done_its_rounds_is_no_fault() -> None:
    fleet = SyntheticFleet(3)
    fleet.open()
    fleet.finish()
    board = board_of(fleet, rounds=1)
    board.say(coordinator=False)
    found = alarms(board)[0]
    assert (found.level, found.what) == (Level.NOTE, "All 1 rounds are done, and the coordinator has ended")


@pytest.mark.parametrize(
    ("phase", "rounds", "paused", "words"),
    [
        ("training", 0, False, "round 3 · training"),
        ("training", 5, True, "round 3 of 5 · training, will pause"),
        ("gathering", 5, True, "round 3 of 5 · paused"),
        ("gathering", 2, False, "all 2 rounds are done"),
    ],
)
def test_where_a_fleet_stands_is_said_in_the_same_words_everywhere(
    phase: str, rounds: int, paused: bool, words: str
) -> None:
    assert standing({"round": 3, "phase": phase, "rounds": rounds, "paused": paused}) == words


def test_a_silent_coordinator_is_noticed_while_a_round_is_open_only() -> None:
    now = [0.0]
    board = Board("test", clock=lambda: now[0])
    board.say(connection="", coordinator=True)
    fleet = SyntheticFleet(6)
    board.take(plain(fleet))
    now[0] = 100.0
    assert alarms(board) == []
    fleet.open()
    board.take(plain(fleet))
    now[0] = 200.0
    assert any("said nothing for 100 s" in a.what for a in alarms(board))
