"""Robust centres equal their naive definitions however memory cuts the block, and a minority cannot carry them away."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import robust
from coordinator.aggregation import Contribution, fold
from coordinator.robust import Robust, Rule, Sliced


@st.composite
def cohorts(draw: st.DrawFn, least: int = 1) -> np.ndarray:
    count, size = draw(st.integers(least, 12)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal((count, size)) * 10.0 ** draw(st.integers(-3, 3))
    return values.astype(draw(st.sampled_from([np.float32, np.float64])))


def reader(values: np.ndarray) -> robust.Read:
    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        for row in values:
            yield row[start:stop]

    return read


tiny = st.sampled_from([16, 300, 5000, robust.MEMORY])


@settings(deadline=None)
@given(cohorts(), tiny)
def test_the_median_is_numpys_per_coordinate(values: np.ndarray, memory: int) -> None:
    found = robust.coordinate_median(reader(values), values.shape[1], len(values), memory=memory)
    assert np.array_equal(found, np.median(values.astype(np.float64), axis=0))


@settings(deadline=None)
@given(cohorts(), tiny, st.floats(0, 0.49))
def test_the_trimmed_mean_leaves_out_as_many_at_either_end(values: np.ndarray, memory: int, share: float) -> None:
    found = robust.trimmed_mean(reader(values), values.shape[1], len(values), share, memory=memory)
    drop = int(share * len(values) + 1e-9)
    for k, column in enumerate(values.astype(np.float64).T):
        kept = sorted(column)[drop : len(column) - drop]
        assert found[k] == pytest.approx(sum(kept) / len(kept), rel=1e-9, abs=1e-9 * abs(column).max())


@settings(deadline=None)
@given(cohorts(least=2), tiny, st.integers(0, 5), st.integers(1, 4))
def test_krum_chooses_by_the_nearest_neighbours(values: np.ndarray, memory: int, hostile: int, keep: int) -> None:
    found = robust.squared_distances(reader(values), values.shape[1], len(values), memory=memory)
    wide = values.astype(np.float64)
    naive = np.array([[float(np.sum((a - b) ** 2)) for b in wide] for a in wide])
    assert found == pytest.approx(naive, rel=1e-6, abs=1e-9 * naive.max())
    near = min(max(1, len(values) - hostile - 2), len(values) - 1)
    scores = [sum(sorted(np.delete(row, i))[:near]) for i, row in enumerate(naive)]
    chosen = robust.krum(found, hostile, keep)
    assert len(set(chosen)) == len(chosen) == min(keep, len(values))
    left_out = [s for i, s in enumerate(scores) if i not in chosen]
    assert max(scores[i] for i in chosen) <= min(left_out, default=np.inf) * (1 + 1e-6) + 1e-12


@settings(deadline=None)
@given(cohorts(), tiny, st.floats(0.1, 3))
def test_after_clipping_no_norm_is_above_the_limit_and_small_ones_are_untouched(
    values: np.ndarray, memory: int, times: float
) -> None:
    lengths = robust.norms(reader(values), values.shape[1], len(values), memory=memory)
    assert lengths == pytest.approx(np.linalg.norm(values.astype(np.float64), axis=1), rel=1e-9)
    factors, limit = robust.clip_factors(lengths, times), times * np.median(lengths)
    assert np.all(lengths * factors <= limit * (1 + 1e-9))
    assert np.all(factors[lengths <= limit] == 1.0)


@settings(deadline=None)
@given(cohorts(), st.sampled_from(list(Rule)), tiny)
def test_equal_contributions_give_exactly_what_they_are(values: np.ndarray, rule: Rule, memory: int) -> None:
    same = np.repeat(values[:1], len(values), axis=0)
    found = Robust(rule, memory=memory).centre(reader(same), same.shape[1], len(same))
    assert found == pytest.approx(same[0].astype(np.float64), rel=1e-9)


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("attack", ["flip", "scale", "noise"])
def test_a_minority_cannot_carry_the_centre_away_as_it_does_the_mean(rule: Rule, attack: str) -> None:
    rng = np.random.default_rng(5)
    truth = rng.standard_normal(500)
    values = truth + 0.3 * rng.standard_normal((20, 500))
    bad = {"flip": -50 * truth, "scale": 100 * truth, "noise": 100 * rng.standard_normal((6, 500))}[attack]
    values[:6] = bad
    plain = np.linalg.norm(values.mean(axis=0) - truth) / np.linalg.norm(truth)
    centre = Robust(rule, share=0.3).centre(reader(values), 500, 20)
    found = np.linalg.norm(centre - truth) / np.linalg.norm(truth)
    assert plain > 5
    assert found < 0.7


def test_a_robust_fold_of_an_honest_cohort_is_near_the_plain_one() -> None:
    rng = np.random.default_rng(2)
    truth = rng.standard_normal(300)
    cohort = [Contribution(f"d{k}", 50, 4.0, truth * 4 + 0.4 * rng.standard_normal(300)) for k in range(15)]
    sliced = [Sliced(c.device, c.samples, c.steps, lambda a, b, d=c.delta: d[a:b]) for c in cohort]
    plain = fold(300, cohort)
    assert plain is not None and plain.divergence.value is not None
    for rule in Rule:
        found = robust.robust_fold(Robust(rule), 300, sliced)
        assert found is not None and found.samples == 750 and found.divergence.value is not None
        assert np.linalg.norm(found.delta - plain.delta) < 0.1 * np.linalg.norm(plain.delta)
        assert abs(found.divergence.value - plain.divergence.value) < 0.1
    assert robust.robust_fold(Robust(Rule.MEDIAN), 300, []) is None


def test_a_trim_of_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below 0\.5"):
        robust.trimmed_mean(reader(np.zeros((3, 2))), 2, 3, 0.5)
