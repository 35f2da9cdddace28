"""A learned deadline finds the length that brings most per second, and goes on after a restart as if there was none."""

from __future__ import annotations

import json
from math import exp

import pytest

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


@pytest.mark.parametrize("wanted", ["fastest", "learned"])
def test_a_device_whose_windows_are_still_filling_does_not_hurry_the_others(wanted: str) -> None:
    of = spec(2)
    usual = [Member(f"d{n}", of.names, 40, speed_from_flops(of, f)) for n, f in enumerate((1e8, 5e7, 1e7))]
    begun = Member("new", of.names, 2, speed_from_flops(of, 1e8))
    planner = strategy("relief")(of, Settings(deadline=wanted))
    assert planner.deadline([*usual, begun]) == planner.deadline(usual) > planner.full_seconds(begun)
