"""Laws of cohort-wise aggregation and of the cohort's divergence."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregation import Contribution, Weighting, fold
from coordinator.commit import fold_round
from coordinator.events import UpdateHead
from coordinator.lateness import aged
from coordinator.strategies import STRATEGIES, Settings
from models import SHARED, Mode, effective_steps, initial
from tests.worlds import NAMES, spec


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Mode, list[UpdateHead], int]:
    """A round of a random fleet: who owns what, who trained what, for how many steps, with how many windows."""
    of = spec(4, draw(st.sampled_from(Mode)))
    heads = []
    for n in range(draw(st.integers(1, 7))):
        owned = draw(st.sets(st.sampled_from(NAMES[:4]), min_size=1))
        trained = draw(st.sets(st.sampled_from(sorted(owned))))
        blocks = {b: (0, draw(st.integers(1, 30))) for b in sorted({*trained, SHARED})}
        samples = draw(st.integers(1, 500))
        heads.append(UpdateHead(f"u{n}", f"d{n}", "boot", 1, 1, "1.1", blocks, samples))
    return of.mode, heads, draw(st.integers(0, 2**31))


def deltas(heads: list[UpdateHead], sizes: dict[str, int], seed: int) -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(seed)
    return {(h.id, b): rng.standard_normal(sizes[b]).astype(np.float32) for h in heads for b in h.blocks}


@given(fleets(), st.floats(0, 0.95))
@settings(max_examples=80, deadline=None)
def test_cohort_wise_aggregation_equals_a_naive_loop_over_devices(
    fleet: tuple[Mode, list[UpdateHead], int], momentum: float
) -> None:
    mode, heads, seed = fleet
    of = spec(4, mode)
    blocks, _ = initial(of)
    sent = deltas(heads, {b: v.size for b, v in blocks.items()}, seed)
    from models import Local

    method = STRATEGIES["cohort-only"](of, Settings(local=Local(momentum=momentum)))
    done = fold_round(method, blocks, dict.fromkeys(blocks, 0), heads, lambda h, b: sent[h.id, b])
    for block, base in blocks.items():
        trainers = [h for h in heads if block in h.blocks]
        if not trainers:
            assert block not in done.blocks  # nobody trained it: not a bit changes
            continue
        n = sum(h.samples for h in trainers)
        tau, mean = 0.0, np.zeros(base.size)
        for h in trainers:
            a = sum(sum(momentum**j for j in range(s + 1)) for s in range(h.blocks[block][1]))
            tau += h.samples / n * a
            mean += h.samples / n * sent[h.id, block].astype(np.float64) / a
        assert np.allclose(done.blocks[block], base + tau * mean, rtol=1e-4, atol=1e-5)
        assert done.versions[block] == 1


@given(fleets())
@settings(max_examples=40, deadline=None)
def test_who_did_not_train_a_block_does_not_dilute_it(fleet: tuple[Mode, list[UpdateHead], int]) -> None:
    mode, heads, seed = fleet
    of = spec(4, mode)
    blocks, _ = initial(of)
    sent = deltas(heads, {b: v.size for b, v in blocks.items()}, seed)
    method = STRATEGIES["relief"](of, Settings())
    idle = UpdateHead("idle", "zz", "boot", 1, 1, "1.1", {}, 10_000)
    zero = dict.fromkeys(blocks, 0)
    with_idle = fold_round(method, blocks, zero, [*heads, idle], lambda h, b: sent[h.id, b])
    without = fold_round(method, blocks, zero, heads, lambda h, b: sent[h.id, b])
    assert all(np.array_equal(with_idle.blocks[b], without.blocks[b]) for b in without.blocks)


def test_fedavg_is_diluted_by_those_who_did_not_train() -> None:
    delta = np.ones(3, np.float32)
    half = fold(3, [Contribution("a", 10, 5.0, delta)], Weighting.DILUTED, total_samples=20)
    assert half is not None
    assert np.allclose(half.delta, 0.5)


@pytest.mark.parametrize("weighting", Weighting)
def test_updates_that_travelled_in_float16_are_folded_in_float64(weighting: Weighting) -> None:
    """Products in float16 would round every update a second time, which no error feedback pays back."""
    sent = np.array([[1e-3, 3e-7], [2e-3, 5e-7]], "<f2")
    short, wide = (
        fold(2, [Contribution(str(i), 333, 7.3, v.astype(dtype)) for i, v in enumerate(sent)], weighting, 700)
        for dtype in ("<f2", "<f8")
    )
    assert short is not None
    assert wide is not None
    assert np.array_equal(short.delta, wide.delta)
    assert short.divergence == wide.divergence


def test_a_late_update_in_float16_is_not_rounded_again() -> None:
    head = UpdateHead("u", "d", "b", 1, 1, "a", {"torso": (0, 3)}, 5)
    vector = np.array([1e-3, 3e-7], "<f2")
    late = aged(lambda *_: vector, {"torso": 2})(head, "torso")
    assert np.array_equal(late, vector.astype(np.float64) / np.sqrt(3.0))
    assert aged(lambda *_: vector, {"torso": 0})(head, "torso") is vector


def test_unequal_steps_do_not_bias_the_mean() -> None:
    """Two devices that pull with the same force per step: the direction is theirs, whatever their step counts."""
    pull = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    folded = fold(2, [Contribution("a", 1, 2.0, 2 * pull[0]), Contribution("b", 1, 20.0, 20 * pull[1])])
    assert folded is not None
    assert folded.delta[0] == pytest.approx(folded.delta[1])


@given(st.integers(2, 40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_divergence_of_noise_is_one_and_of_agreement_zero_at_any_cohort_size(cohort: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [int(n) for n in rng.integers(1, 100, cohort)]
    same = rng.standard_normal(4000)
    agree = fold(4000, [Contribution(str(i), n, 1.0, same) for i, n in enumerate(samples)])
    noise = fold(4000, [Contribution(str(i), n, 1.0, rng.standard_normal(4000)) for i, n in enumerate(samples)])
    assert agree is not None
    assert noise is not None
    assert agree.divergence.value == pytest.approx(0.0, abs=1e-9)
    assert noise.divergence.value == pytest.approx(1.0, abs=0.1)


def test_one_trainer_has_no_divergence() -> None:
    alone = fold(2, [Contribution("a", 3, 1.0, np.ones(2))])
    assert alone is not None
    assert alone.divergence.value is None


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_effective_steps_are_the_distance_of_unit_gradients(momentum: float) -> None:
    velocity = position = 0.0
    for steps in range(1, 30):
        velocity = momentum * velocity + 1.0
        position += velocity
        assert effective_steps(steps, momentum) == pytest.approx(position)


def test_memory_at_commit_does_not_grow_with_the_number_of_devices() -> None:
    of = spec(2, widths=(16, 32), fusion=256, bins=4)
    blocks, _ = initial(of)

    def peak(devices: int) -> int:
        heads = [UpdateHead(f"u{n}", f"d{n}", "b", 1, 1, "a", {"torso": (0, 3)}, 5) for n in range(devices)]
        method = STRATEGIES["relief"](of, Settings())
        tracemalloc.start()
        delta = np.ones(blocks["torso"].size, np.float32)
        fold_round(method, blocks, dict.fromkeys(blocks, 0), heads, lambda h, b: delta.copy())
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(2)
    assert peak(200) < 1.2 * peak(5) + 65536
