"""Repeated refusals lead into quarantine, time and good work lead out of it, and an operator decides over both."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.quarantine import Limits, Quarantine

LIMITS = Limits(strikes=3, within=100.0, hold=60.0, longest=200.0, clear=2)


def test_three_refusals_within_the_window_hold_a_device_and_say_why() -> None:
    q = Quarantine(LIMITS)
    assert q.refused("d", "shape", 0) is None
    assert q.refused("d", "finite", 10) is None
    held = q.refused("d", "shape", 20)
    assert held is not None and held.until == 80 and "3 refusals" in held.reason and "finite; shape" in held.reason
    assert q.held("d", 79.9) == held and q.all_held(30) == {"d": held}
    assert q.held("other", 30) is None


def test_refusals_that_lie_far_apart_do_not_add_up() -> None:
    q = Quarantine(LIMITS)
    assert not any(q.refused("d", "late", t) for t in (0, 60, 120, 180, 240, 300))


def test_time_leads_out_and_the_next_refusal_back_in_for_twice_as_long() -> None:
    q = Quarantine(LIMITS)
    for t in (0, 1, 2):
        held = q.refused("d", "shape", t)
    assert held is not None
    for expected in (120, 200, 200):
        now = held.until
        assert q.held("d", now) is None
        again = q.refused("d", "shape", now)
        assert again is not None and again.until - now == expected
        held = again


def test_good_work_in_a_row_wipes_the_slate_clean() -> None:
    q = Quarantine(LIMITS)
    for t in (0, 1, 2):
        q.refused("d", "shape", t)
    q.held("d", 100)
    q.accepted("d")
    q.accepted("d")
    assert q.refused("d", "shape", 101) is None
    assert q.state(101)["d"]["times"] == 0


def test_refusals_while_held_do_not_prolong_it() -> None:
    q = Quarantine(LIMITS)
    for t in (0, 1, 2):
        held = q.refused("d", "shape", t)
    assert held is not None
    assert q.refused("d", "shape", 30) is None
    assert q.held("d", held.until) is None


def test_what_an_operator_holds_only_an_operator_releases() -> None:
    q = Quarantine(LIMITS)
    q.hold("d", "smells", 0)
    assert q.wake == inf
    held = q.held("d", 1e9)
    assert held is not None and held.reason == "smells"
    assert q.release("d") and not q.release("d")
    assert q.held("d", 1e9) is None


events = st.lists(
    st.tuples(st.sampled_from(["refused", "accepted", "hold", "release"]), st.sampled_from("ab"), st.floats(0, 80)),
    max_size=40,
)


@given(events, st.floats(-1e6, 1e6))
def test_a_restart_at_any_moment_changes_nothing(happened: list[tuple[str, str, float]], shift: float) -> None:
    shift = float(int(shift))
    whole, now = Quarantine(LIMITS), 0.0
    for n, (kind, device, after) in enumerate(happened):
        after = float(int(after))
        now += after
        restarted = Quarantine(LIMITS)
        restarted.restore(whole.state(now), now + shift)
        results = []
        for q, t in ((whole, now), (restarted, now + shift)):
            if kind == "refused":
                q.refused(device, f"reason {n}", t)
            elif kind == "accepted":
                q.accepted(device)
            elif kind == "hold":
                q.hold(device, "operator", t)
            else:
                q.release(device)
            results.append(q.state(t))
        assert results[0] == results[1]


@given(events)
def test_a_hold_by_rule_always_ends(happened: list[tuple[str, str, float]]) -> None:
    q, now = Quarantine(LIMITS), 0.0
    for kind, device, after in happened:
        now += after
        if kind == "refused":
            q.refused(device, "shape", now)
        elif kind == "accepted":
            q.accepted(device)
        assert all(held.until <= now + LIMITS.longest for held in q.all_held(now).values())
    assert q.all_held(now + LIMITS.longest) == {}


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="strikes"):
        Limits(strikes=0)
