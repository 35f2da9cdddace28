"""Repeated refusals lead into quarantine, time and good work lead out of it, and an operator decides over both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.events import Suspended, Tick, Wish
from coordinator.quarantine import Held, Limits, Slates
from coordinator.rounds import Rounds
from coordinator.strategies import Settings, strategy
from tests.worlds import spec

LIMITS = Limits(strikes=3, within=100.0, hold=60.0, longest=200.0, clear=2)


def core() -> Rounds:
    of = spec(2)
    return Rounds(of, strategy("relief")(of, Settings()))


def test_three_refusals_within_the_window_hold_a_device_and_say_why() -> None:
    slates = Slates(LIMITS)
    assert slates.refused("d", "shape", 0) is None
    assert slates.refused("d", "finite", 10) is None
    held = slates.refused("d", "shape", 20)
    assert held is not None and held.until == 80 and "3 refusals" in held.reason and "finite; shape" in held.reason
    assert slates.refused("other", "shape", 30) is None


def test_refusals_that_lie_far_apart_do_not_add_up() -> None:
    slates = Slates(LIMITS)
    assert not any(slates.refused("d", "late", t) for t in (0, 60, 120, 180, 240, 300))


def test_after_its_time_the_next_refusal_holds_a_device_again_for_twice_as_long() -> None:
    slates = Slates(LIMITS)
    for t in (0, 1, 2):
        held = slates.refused("d", "shape", t)
    assert held is not None
    for expected in (120, 200, 200):
        now = held.until
        held = slates.refused("d", "shape", now)
        assert held is not None and held.until - now == expected


def test_good_work_in_a_row_and_an_operators_release_wipe_the_slate_clean() -> None:
    def good(slates: Slates) -> None:
        slates.accepted("d")
        slates.accepted("d")

    for wipe in (good, lambda slates: slates.wipe("d")):
        slates = Slates(LIMITS)
        for t in (0, 1, 2):
            slates.refused("d", "shape", t)
        wipe(slates)
        assert slates.refused("d", "shape", 101) is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.floats(0, 80)), max_size=40))
def test_a_hold_by_rule_always_ends(happened: list[tuple[bool, str, float]]) -> None:
    slates, table, now = Slates(LIMITS), core(), 0.0
    quarantined = table.registry.quarantined
    for refused, device, after in happened:
        now += after
        table.handle(Tick(), now)
        if device in quarantined:
            continue
        if not refused:
            slates.accepted(device)
        elif held := slates.refused(device, "shape", now):
            table.handle(Suspended(device, held), now)
        assert all(now < one.until <= now + LIMITS.longest for one in quarantined.values())
        assert table.due == min([one.until for one in quarantined.values()], default=float("inf"))
    table.handle(Tick(), now + LIMITS.longest)
    assert quarantined == {}


@pytest.mark.parametrize("rule_first", [True, False])
def test_what_an_operator_holds_only_an_operator_releases(rule_first: bool) -> None:
    table = core()
    events = [Suspended("d", Held("3 refusals", 60.0)), Wish("quarantine", "d", "smells")]
    for event in events if rule_first else reversed(events):
        table.handle(event, 0.0)
    table.handle(Tick(), 1e9)
    assert table.registry.quarantined == {"d": Held("smells")}
    assert table.registry.held == {"d": "smells"} and table.due == float("inf")
    table.handle(Wish("release", "d"), 1e9)
    assert table.registry.quarantined == {}


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="strikes"):
        Limits(strikes=0)
