"""A learned deadline finds the length that brings most per second, and goes on after a restart as if there was none."""

from __future__ import annotations

import json
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.allocation import most_steps
from coordinator.config import CoordinatorConfig
from coordinator.events import UpdateHead
from coordinator.pacing import FACTOR, STAY, TURNS, LearnedDeadline
from coordinator.strategies import Settings, Strategy, strategy
from coordinator.work import Member, speed_from_flops
from tests.worlds import spec

COMPARISON = STAY * len(TURNS)


def live(pacing: LearnedDeadline, rounds: int, best: float, *, offset: float = 0.0) -> list[float]:
    """The deadlines of so many rounds in a world whose log loss falls fastest, per second, at `best` seconds.

    Shorter rounds show a higher mean loss (`offset`), as they do in truth, and learning slows down all the time.
    """
    fallen, seen = 0.0, []
    for n in range(rounds):
        seconds = pacing.deadline(1.0, 8.0)
        seen.append(seconds)
        pacing.heard(seconds, exp(offset / seconds - fallen))
        rate = 1 / (1 + (seconds / best - 1) ** 2) / (1 + n / 200)
        fallen += 0.02 * rate * seconds
    return seen


@pytest.mark.parametrize("best", [0.35, 1.0, 4.0])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_length_that_brings_most_per_second_is_found_and_kept(best: float, offset: float) -> None:
    lengths = live(LearnedDeadline(), 12 * COMPARISON, best, offset=offset)
    assert all(best / FACTOR**1.6 <= s <= best * FACTOR**1.6 for s in lengths[-2 * COMPARISON :])


def test_a_length_is_never_longer_than_the_slowest_devices_full_round_and_never_a_step_too_short() -> None:
    for best in (0.001, 1000.0):
        lengths = live(LearnedDeadline(), 40 * COMPARISON, best)
        assert min(lengths) >= 1.0 / FACTOR**6.01 and max(lengths) <= 8.0
    pacing = LearnedDeadline()
    live(pacing, 40 * COMPARISON, 1000.0)
    assert pacing.level <= 7, "beyond the slowest device's round there is nothing to search"


def test_a_loss_that_is_no_number_counts_against_the_length_that_made_it() -> None:
    pacing = LearnedDeadline()
    for turn in TURNS:
        for n in range(STAY):
            pacing.deadline(1.0, 8.0)
            pacing.heard(1.0, float("nan") if turn else 1.0 - 0.01 * n)
    assert pacing.level == 0


def heads(seconds: float, loss: float) -> list[UpdateHead]:
    return [
        UpdateHead(id=d, device=d, boot="b", round=1, epoch=1, assignment="1", blocks={}, samples=10, loss=loss,
                   seconds=s)
        for d, s in (("a", seconds), ("b", seconds / 2))
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["relief", "relief-momentum-samples", "fedavg-masked-cut"])
def test_the_search_survives_a_restart_at_any_round(name: str) -> None:
    of = spec(2)
    members = [Member(d, of.names, 40, speed_from_flops(of, f)) for d, f in (("fast", 1e8), ("slow", 1e7))]

    def fresh() -> Strategy:
        return strategy(name)(of, Settings(deadline="learned"))

    whole, broken = fresh(), fresh()
    seen: list[list[float]] = [[], []]
    for n in range(2 * COMPARISON):
        for k, method in enumerate((whole, broken)):
            seen[k].append(method.deadline(members))
            method.heard(n, heads(seen[k][-1], 1.0 / (n + 1)))
        kept = json.loads(json.dumps(broken.state()))
        broken = fresh()
        broken.restore(kept)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 2


@pytest.mark.parametrize("wanted", ["fastest", "cohorts", "learned"])
def test_a_device_whose_windows_are_still_filling_does_not_hurry_the_others(wanted: str) -> None:
    of = spec(2)
    usual = [Member(f"d{n}", of.names, 40, speed_from_flops(of, f)) for n, f in enumerate((1e8, 5e7, 1e7))]
    begun = Member("new", of.names, 2, speed_from_flops(of, 1e8))
    planner = strategy("relief")(of, Settings(deadline=wanted))
    assert planner.deadline([*usual, begun]) == planner.deadline(usual) > planner.full_seconds(begun)


@st.composite
def fleets(draw: st.DrawFn) -> list[Member]:
    """Devices whose speeds lie up to a thousandfold apart, whatever they own; links may be thin, latencies long."""
    of = spec(3)
    owned = st.lists(st.sampled_from(of.names), min_size=1, unique=True).map(lambda some: tuple(sorted(some)))
    speed = st.sampled_from([1e6, 1e7, 1e8, 1e9])
    return [
        Member(
            f"d{n}",
            draw(owned),
            draw(st.integers(20, 80)),
            speed_from_flops(of, draw(speed)),
            rate=draw(st.sampled_from([0.0, 1e3, 1e6])),
            overhead=draw(st.sampled_from([0.0, 0.02, 3.0])),
        )
        for n in range(draw(st.integers(1, 8)))
    ]


@given(fleets(), st.integers(0, 60))
def test_half_of_every_cohort_has_time_for_a_step_on_its_block(fleet: list[Member], rounds: int) -> None:
    for wanted in ("cohorts", "learned"):
        method = strategy("relief-momentum-samples")(spec(3), Settings(deadline=wanted))
        for n in range(rounds):  # ever shorter rounds bring ever more: the search goes down as far as it may
            method.heard(n, heads(method.deadline(fleet), 0.5**n))
        budget = method.budget(method.deadline(fleet))
        for m in spec(3).names:
            owners = [d for d in fleet if m in d.owned]
            able = [
                d
                for d in owners
                if any(most_steps(method.work(d), some, budget, method.cap(d)) for some in ([m], d.owned))
            ]
            assert 2 * len(able) >= len(owners), f"{wanted}: {len(able)} of {len(owners)} owners of {m}"


def test_cohorts_are_the_fastest_devices_round_where_that_is_enough() -> None:
    of = spec(3)
    rich = Member("rich", of.names, 40, speed_from_flops(of, 1e8))
    poor = Member("poor", of.names[:1], 40, speed_from_flops(of, 1e7))
    slow = Member("slow", of.names, 40, speed_from_flops(of, 1e6))
    quick = Member("quick", of.names[:1], 40, speed_from_flops(of, 1e8))

    def seconds(wanted: str, *fleet: Member) -> float:
        return strategy("relief")(of, Settings(deadline=wanted)).deadline(fleet)

    assert seconds("cohorts", rich, poor) == seconds("fastest", rich, poor)
    assert seconds("cohorts", slow, quick) > seconds("fastest", slow, quick)


@pytest.mark.parametrize("wrong", ["fast", "", -1, 0, "0", float("nan")])
def test_a_deadline_that_is_none_is_refused_with_those_that_are(wrong: object) -> None:
    with pytest.raises(ValueError, match=r'"cohorts".*a quantile between 0 and 1, or seconds'):
        CoordinatorConfig.model_validate({"deadline": wrong})
    assert CoordinatorConfig.model_validate({"deadline": "0.5"}).settings().deadline == 0.5
