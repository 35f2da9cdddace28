"""Laws of the allocation: budgets are kept, floors are placed, small cases equal brute force."""

from __future__ import annotations

from itertools import chain, combinations
from math import inf, log1p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.allocation import EXACT, allocate, fits, floors, most_steps, water_fill
from coordinator.work import Budget, Work, work
from models import SHARED, Mode
from tests.worlds import member, spec

BLOCKS = ("a", "b", "c", "d")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Work, dict[str, float], Budget, int]:
    blocks = BLOCKS[: draw(st.integers(1, 4))]
    some = st.floats(0.01, 5.0)
    w = Work(
        step=draw(some),
        train={b: draw(some) for b in blocks},
        still={b: draw(st.floats(0.0, 5.0)) for b in blocks},
        upload={b: draw(st.floats(0.0, 2.0)) for b in (*blocks, SHARED)},
        size={b: draw(st.integers(1, 1000)) for b in (*blocks, SHARED)},
        watts=draw(st.sampled_from([0.0, 3.0])),
        fixed=draw(st.floats(0.0, 1.0)),
        blocks=blocks,
    )
    budget = Budget(
        draw(st.sampled_from([inf, 5.0, 20.0, 60.0])),
        draw(st.sampled_from([inf, 30.0, 120.0])),
        draw(st.sampled_from([inf, 800.0, 2500.0])),
    )
    return w, {b: draw(st.floats(0.01, 1.0)) for b in blocks}, budget, draw(st.integers(1, 25))


def brute_force(w: Work, utility: dict[str, float], budget: Budget, cap: int) -> float:
    best = 0.0
    for chosen in chain.from_iterable(combinations(w.blocks, n) for n in range(len(w.blocks) + 1)):
        for s in range(1, cap + 1):
            if fits(w, {**dict.fromkeys(chosen, s), SHARED: s}, budget):
                best = max(best, sum(utility[b] for b in chosen) * log1p(s))
    return best


@given(cases())
@settings(max_examples=150, deadline=None)
def test_the_allocation_keeps_all_budgets_and_equals_brute_force(
    case: tuple[Work, dict[str, float], Budget, int],
) -> None:
    w, utility, budget, cap = case
    steps = allocate(w, utility, budget, cap)
    assert not steps or fits(w, steps, budget)
    assert all(1 <= s <= cap for s in steps.values())
    reached = sum(utility[b] * log1p(s) for b, s in steps.items() if b != SHARED)
    assert reached == pytest.approx(brute_force(w, utility, budget, cap), rel=1e-9)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_water_filling_keeps_all_budgets(case: tuple[Work, dict[str, float], Budget, int]) -> None:
    w, utility, budget, cap = case
    steps = water_fill(w, utility, budget, cap)
    assert not steps or fits(w, steps, budget)
    assert all(1 <= s <= cap for s in steps.values())


@given(cases(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_forced_block_is_trained_wherever_one_step_of_it_fits(
    case: tuple[Work, dict[str, float], Budget, int], which: int
) -> None:
    w, utility, budget, cap = case
    block = w.blocks[which % len(w.blocks)]
    for rule in (allocate, water_fill):
        steps = rule(w, utility, budget, cap, forced=[block])
        assert not steps or fits(w, steps, budget)
        if most_steps(w, [block], budget, cap) and rule is allocate:
            assert block in steps


def test_with_nothing_to_limit_it_a_device_trains_everything() -> None:
    of = spec(3)
    steps = allocate(work(of, member(of), 8), dict.fromkeys(of.names, 1.0), Budget(), 10)
    assert steps == {**dict.fromkeys(of.names, 10), SHARED: 10}


def test_above_the_exact_limit_blocks_are_added_greedily_within_the_budget() -> None:
    blocks = tuple(f"m{i}" for i in range(EXACT + 3))
    w = Work(
        0.1,
        dict.fromkeys(blocks, 1.0),
        dict.fromkeys(blocks, 0.1),
        dict.fromkeys((*blocks, SHARED), 0.0),
        dict.fromkeys((*blocks, SHARED), 1),
        0.0,
        blocks=blocks,
    )
    utility = {b: float(n + 1) for n, b in enumerate(blocks)}
    steps = allocate(w, utility, Budget(seconds=30.0), 20)
    assert fits(w, steps, Budget(seconds=30.0))
    assert blocks[-1] in steps
    assert blocks[0] not in steps


def test_floors_go_to_the_two_cheapest_owners() -> None:
    of = spec(3)
    members = [member(of, f"d{n}", ("torso",) if n < 3 else ("arm",), flops=1e6 * (n + 1)) for n in range(5)]
    works = {m.id: work(of, m, 8) for m in members}
    forced = floors(["torso", "arm"], members, works, {m.id: Budget() for m in members})
    assert [d for d, blocks in forced.items() if "torso" in blocks] == ["d1", "d2"]
    assert [d for d, blocks in forced.items() if "arm" in blocks] == ["d3", "d4"]


def test_a_lone_owner_is_forced_alone() -> None:
    of = spec(2)
    members = [member(of, "a", ("torso",)), member(of, "b", ("arm",)), member(of, "c", ("arm",))]
    works = {m.id: work(of, m, 8) for m in members}
    forced = floors(["torso"], members, works, {m.id: Budget() for m in members})
    assert forced == {"a": {"torso"}, "b": set(), "c": set()}


def test_in_lora_without_adapters_a_step_costs_no_encoder() -> None:
    of = spec(2, Mode.LORA)
    w = work(of, member(of), 8)
    assert all(seconds == 0.0 for seconds in w.still.values())


def test_dropout_makes_a_step_cheaper_but_never_for_a_single_modality() -> None:
    of = spec(3)
    plain, dropped = (work(of, member(of), 8, dropout=p) for p in (0.0, 0.4))
    assert all(dropped.train[b] < plain.train[b] for b in plain.train)
    alone = [work(of, member(of, owned=("arm",)), 8, dropout=p).train["arm"] for p in (0.0, 0.4)]
    assert alone[0] == pytest.approx(alone[1])
