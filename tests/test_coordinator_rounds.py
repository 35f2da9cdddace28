"""The round core: what it does with births, deaths, updates, deadlines, repeats and restarts. No I/O anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import coordinator.rounds
from coordinator.events import (
    Acknowledge,
    Action,
    Declined,
    Event,
    Fold,
    Folded,
    Open,
    Say,
    Send,
    StatusArrived,
    Store,
    Stored,
    Tick,
    UpdateArrived,
    UpdateHead,
    Wish,
)
from coordinator.rounds import Pace, Phase, Rounds
from coordinator.strategies import Settings, strategy
from device_runtime.assignments import latest
from models import SHARED
from protocol.messages import BlockSpeed, Scale, Status
from tests.worlds import spec


def birth(modalities: tuple[str, ...] = ("torso", "arm"), boot: str = "b1", **more: object) -> Status:
    fields: dict[str, object] = {
        "online": True,
        "boot": boot,
        "modalities": dict.fromkeys(modalities, 3),
        "windows": 40,
        "can_train": True,
    }
    return Status.model_validate({**fields, **more})


class Table:
    """A core with its time and what it wanted so far."""

    def __init__(self, method: str = "relief", **pace: float) -> None:
        self.now = 0.0
        of = spec(3)
        self.core = Rounds(of, strategy(method)(of, Settings()), Pace(**pace))  # type: ignore[arg-type]

    def feed(self, event: Event) -> list[Action]:
        return self.core.handle(event, self.now)

    def born(self, device: str, **status: object) -> list[Action]:
        return self.feed(StatusArrived(device, birth(**status)))  # type: ignore[arg-type]

    def head(self, device: str, **changes: object) -> UpdateHead:
        a = self.core.assignments[device]
        fields: dict[str, object] = {
            "id": f"{device}-{a.id}",
            "device": device,
            "boot": "b1",
            "round": a.round,
            "epoch": a.epoch,
            "assignment": a.id,
            "blocks": {b: (a.versions[b], s) for b, s in a.steps.items()},
            "samples": 40,
        }
        return UpdateHead(**{**fields, **changes})  # type: ignore[arg-type]

    def answers(self, head: UpdateHead) -> list[Action]:
        """Deliver an update and let the disk have it."""
        actions = self.feed(UpdateArrived(head))
        return actions + self.feed(Stored(tuple(a.head.id for a in actions if isinstance(a, Store))))


def kinds(actions: list[Action], kind: type) -> list[Action]:
    return [a for a in actions if isinstance(a, kind)]


def test_a_round_goes_from_birth_to_the_next_assignment() -> None:
    t = Table()
    opened = t.born("a")
    assert [type(a) for a in opened if isinstance(a, Open | Send)] == [Open, Send]
    actions = t.answers(t.head("a"))
    assert kinds(actions, Acknowledge) == [Acknowledge("a", "a-1.1", True)]
    (fold,) = kinds(actions, Fold)
    assert fold == Fold(1, 1, ("a-1.1",))
    after = t.feed(Folded(1, {"torso": 1}, {}))
    (again,) = kinds(after, Send)
    assert isinstance(again, Send)
    assert again.assignment.round == 2
    assert again.assignment.versions == {"torso": 1, "arm": 0, SHARED: 0}


def test_an_update_is_acknowledged_only_once_it_is_on_disk() -> None:
    t = Table()
    t.born("a")
    assert not kinds(t.feed(UpdateArrived(t.head("a"))), Acknowledge)
    assert t.core.phase is Phase.TRAINING
    assert kinds(t.feed(Stored(("a-1.1",))), Acknowledge)


def test_a_repeated_update_is_acknowledged_again_and_counted_once() -> None:
    t = Table()
    t.born("a")
    t.born("b")
    t.core.handle(StatusArrived("b", birth()), 0.0)
    head = t.head("a")
    t.answers(head)
    t.feed(Folded(1, {}, {}))
    repeat = t.feed(UpdateArrived(head))
    assert kinds(repeat, Acknowledge) == [Acknowledge("a", "a-1.1", True)]
    assert not kinds(repeat, Store)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epoch": 7}, "stale: trained in epoch 7"),
        ({"round": 9}, "stale: made for round 9"),
        ({"assignment": "other"}, "not assigned"),
        ({"blocks": {"leg": (0, 1)}}, "block leg: not assigned"),
        ({"blocks": {"torso": (5, 1)}}, "block torso: stale version 5"),
        ({"blocks": {"torso": (0, 10_000)}}, "block torso: 10000 steps"),
        ({"blocks": {"torso": (0, 0)}}, "block torso: 0 steps"),
        ({"samples": 0}, "samples"),
    ],
)
def test_an_update_that_does_not_answer_its_assignment_is_refused(changes: dict[str, object], reason: str) -> None:
    t = Table()
    t.born("a")
    actions = t.feed(UpdateArrived(t.head("a", **changes)))
    (answer,) = kinds(actions, Acknowledge)
    assert isinstance(answer, Acknowledge)
    assert not answer.accepted
    assert answer.reason.startswith(reason)
    assert not kinds(actions, Store)


def test_a_second_update_of_the_same_round_is_refused() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    t.answers(t.head("a"))
    (answer,) = kinds(t.answers(t.head("a", id="another")), Acknowledge)
    assert isinstance(answer, Acknowledge)
    assert answer.reason.startswith("duplicate")


def test_a_fleet_without_time_for_a_single_step_is_told_of_and_goes_on_when_somebody_has() -> None:
    t = Table()
    t.core.strategy = strategy("relief")(spec(3), Settings(deadline=1.0))
    t.born("slow", rate=1.0)  # bytes per second: no update of it arrives in time
    t.now = 100.0
    said = t.feed(Tick())
    assert "none of 1 devices has time for a single step" in t.core.stuck
    assert kinds(said, Say)
    t.born("quick", rate=1e6)
    assert set(t.core.assignments) == {"quick"}
    assert not t.core.stuck


def test_a_vanished_device_costs_at_most_the_deadline() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    t.answers(t.head("a"))
    assert t.core.phase is Phase.TRAINING
    t.now = t.core.wake
    (fold,) = kinds(t.feed(Tick()), Fold)
    assert isinstance(fold, Fold)
    assert fold.updates == ("a-1.1",)


def test_a_death_that_is_announced_costs_nothing() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    t.answers(t.head("a"))
    death = Status(online=False, boot="b1")
    assert kinds(t.feed(StatusArrived("b", death)), Fold)


def test_a_late_death_of_an_earlier_boot_does_not_bury_a_live_device() -> None:
    t = Table()
    t.born("a", boot="b2")
    t.feed(StatusArrived("a", Status(online=False, boot="b1")))
    assert t.core.registry.devices["a"].status.online


def test_a_device_born_again_within_a_round_gets_its_assignment_again() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    t.now = 1.0
    (send,) = kinds(t.born("a", boot="b2"), Send)
    assert isinstance(send, Send)
    assert send.assignment.id == "1.1"
    assert send.assignment.deadline < t.core.deadline


def test_updates_are_folded_in_device_order_whatever_the_arrival_order() -> None:
    for order in (("a", "b", "c"), ("c", "a", "b")):
        t = Table(expect=3)
        for device in "abc":
            t.born(device)
        actions: list[Action] = []
        for device in order:
            actions += t.answers(t.head(device))
        (fold,) = kinds(actions, Fold)
        assert isinstance(fold, Fold)
        assert fold.updates == ("a-1.1", "b-1.1", "c-1.1")


def test_who_declines_is_not_waited_for() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    t.answers(t.head("a"))
    assert kinds(t.feed(Declined("b", "1.1", "battery at 5 %")), Fold)


def test_where_everybody_declines_rounds_do_not_follow_at_the_networks_speed() -> None:
    t = Table(margin=5.0)
    t.born("a")
    t.now = 1.0
    t.feed(Declined("a", "1.1", "too hot"))
    assert not kinds(t.feed(Folded(1, {}, {})), Send)
    assert t.core.wake == 5.0
    t.now = 4.9
    assert not kinds(t.feed(Tick()), Send)
    t.now = 5.0
    assert kinds(t.feed(Tick()), Send)
    t.feed(Declined("a", "1.2", "too hot"))
    t.feed(Folded(2, {}, {}))
    assert kinds(t.born("b"), Send)  # somebody new is a reason to try at once


def test_a_round_that_brought_something_is_followed_at_once() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    t.answers(t.head("a"))
    t.feed(Declined("b", "1.1", "too hot"))
    assert kinds(t.feed(Folded(1, {}, {})), Send)


def test_the_deadline_that_a_device_is_told_leaves_time_for_its_answer() -> None:
    t = Table("fedavg", patience=2.0, margin=5.0)
    (sent,) = kinds(t.born("a", rate=1000.0), Send)
    assert isinstance(sent, Send)
    assert sent.assignment.deadline == pytest.approx(t.core.deadline - min(5.0, t.core.deadline / 4))
    assert sent.assignment.rate == 1000.0
    assert latest(sent.assignment, 0.0, t.core.spec) < sent.assignment.deadline  # its upload's time is taken off too
    t.now = t.core.deadline - 1e-9
    (again,) = kinds(t.born("a", boot="b2", rate=1000.0), Send)
    assert isinstance(again, Send)
    assert again.assignment.deadline > 0  # 0 would be none at all


def test_without_devices_nothing_happens_and_no_timer_runs() -> None:
    t = Table()
    t.born("a")
    t.answers(t.head("a"))
    t.feed(StatusArrived("a", Status(online=False, boot="b1")))
    t.feed(Folded(1, {}, {}))
    assert t.core.phase is Phase.GATHERING
    assert t.core.wake == float("inf")
    assert kinds(t.born("a", boot="b2"), Send)


def test_a_paused_fleet_finishes_its_round_and_begins_no_other() -> None:
    t = Table()
    t.born("a")
    t.feed(Wish("pause"))
    t.answers(t.head("a"))
    assert not kinds(t.feed(Folded(1, {}, {})), Send)
    assert kinds(t.feed(Wish("resume")), Send)


def test_a_quarantined_device_is_neither_asked_nor_heard() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    head = t.head("b")
    t.feed(Wish("quarantine", "b", "norms far off"))
    (answer,) = kinds(t.feed(UpdateArrived(head)), Acknowledge)
    assert isinstance(answer, Acknowledge)
    assert "norms far off" in answer.reason
    t.answers(t.head("a"))
    sent = kinds(t.feed(Folded(1, {}, {})), Send)
    assert [s.device for s in sent if isinstance(s, Send)] == ["a"]


def test_the_first_round_waits_for_the_expected_devices_but_not_for_ever() -> None:
    t = Table(expect=3, gather=10.0)
    assert not kinds(t.born("a"), Send)
    assert t.core.wake == 10.0
    t.now = 10.0
    assert kinds(t.feed(Tick()), Send)


def test_the_first_round_waits_until_sensors_have_filled_their_windows() -> None:
    t = Table(settle=2.0)
    t.born("a", windows=1)
    t.now = 1.5
    t.born("a", windows=30)
    assert t.core.wake == 3.5
    t.now = 3.5
    assert kinds(t.feed(Tick()), Send)


def test_normalisation_follows_the_data_while_it_doubles() -> None:
    t = Table()
    t.born("a", scale={"torso": Scale(count=4, total=[4.0] * 3, squares=[8.0] * 3)})
    for count, center in ((6, 1.0), (8, 2.0), (15, 2.0)):
        t.answers(t.head("a"))
        scale = Scale(count=count, total=[2.0 * count] * 3, squares=[8.0 * count] * 3)
        t.feed(StatusArrived("a", birth(scale={"torso": scale})))
        t.feed(Folded(t.core.round, {}, {}))
        assert t.core.scales["torso"][0] == [center] * 3


def test_no_device_is_assigned_what_it_does_not_own() -> None:
    t = Table(expect=2)
    t.born("a", modalities=("torso",))
    t.born("b", modalities=("arm", "leg"))
    for device, a in t.core.assignments.items():
        assert set(a.steps) <= {*t.core.registry.owned(device), SHARED}


def test_zero_filled_fedavg_gives_everybody_the_full_model() -> None:
    t = Table("fedavg")
    t.born("a", modalities=("torso",))
    assert set(t.core.assignments["a"].steps) == {"torso", "arm", "leg", SHARED}


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        ({"protocol": 99}, "the device speaks protocol 99, this side 1: update this side"),
        ({"protocol": 0}, "the device speaks protocol 0, this side 1: update the device"),
        ({"modalities": ("radar",)}, "owns no modality of the model"),
        ({"speed": {"torso": BlockSpeed(forward=1e308, backward=1e308)}}, "a window takes it 1e+308 s"),
        ({"speed": {"torso": BlockSpeed(forward=-1.0, backward=0.1)}}, "a window takes it -1 s"),
        ({"rate": 1e-308}, "its uplink carries 1e-308 bytes per second"),
        ({"rate": -1.0}, "its uplink carries -1 bytes per second"),
        ({"windows": 2**53 - 1}, "9007199254740991 windows"),
    ],
)
def test_a_device_that_does_not_fit_is_named_and_left_out(status: dict[str, object], fault: str) -> None:
    t = Table()
    assert not kinds(t.born("a", **status), Send)
    assert fault in t.core.registry.devices["a"].fault


def test_a_cohorts_normalisation_is_made_of_its_devices_sums() -> None:
    t = Table(expect=2)
    one = Scale(count=2, total=[2.0, 0.0, 0.0], squares=[4.0, 0.0, 0.0])
    two = Scale(count=2, total=[6.0, 0.0, 0.0], squares=[20.0, 0.0, 0.0])
    t.born("a", scale={"torso": one})
    (opened,) = kinds(t.born("b", scale={"torso": two}), Open)
    assert isinstance(opened, Open)
    center, width = opened.normalisation["torso"]
    assert center == [2.0, 0.0, 0.0]
    assert width == pytest.approx([2.0**0.5, 1.0, 1.0])


@pytest.mark.parametrize("odd", ["aa", "zz"])
def test_a_device_that_does_not_fit_spoils_nobodys_normalisation(odd: str) -> None:
    t = Table(expect=2)
    good = Scale(count=2, total=[2.0, 0.0, 0.0], squares=[4.0, 0.0, 0.0])
    wide = Scale(count=9, total=[90.0] * 3, squares=[900.0] * 3)
    t.feed(StatusArrived(odd, birth(scale={"torso": wide}).model_copy(update={"modalities": {"torso": 2}})))
    t.feed(Wish("quarantine", "bb", "broken"))
    t.born("bb", scale={"torso": wide})
    t.born("bc", scale={"torso": Scale(count=9, total=[90.0] * 2, squares=[900.0] * 2)})
    (opened,) = kinds(t.born("c", scale={"torso": good}), Open)
    assert isinstance(opened, Open)
    assert opened.normalisation["torso"][0] == [1.0, 0.0, 0.0]
    assert opened.counts == {"torso": 2}


def test_a_restarted_round_continues_with_the_updates_it_had() -> None:
    t = Table(expect=2)
    t.born("a")
    t.born("b")
    head = t.head("a")
    t.answers(head)
    later = Table(expect=2)
    later.core.reopen(t.core.assignments, t.core.stored, 0.0)
    assert kinds(later.feed(UpdateArrived(head)), Acknowledge) == [Acknowledge("a", head.id, True)]
    (send,) = kinds(later.born("b"), Send)
    assert isinstance(send, Send)
    assert send.device == "b"
    (fold,) = kinds(later.answers(later.head("b")), Fold)
    assert isinstance(fold, Fold)
    assert fold.updates == ("a-1.1", "b-1.1")


def test_the_round_core_imports_nothing_that_does_input_or_output() -> None:
    allowed = {"__future__", "collections.abc", "dataclasses", "enum", "math"}
    tree = ast.parse(Path(coordinator.rounds.__file__).read_text())
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import)]
    ours = {m for m in modules if m and m.split(".")[0] in ("coordinator", "models", "protocol")}
    assert modules - ours <= allowed
