"""The ridge correction brings B A_m nearer to the mean of what the cohort's devices learned, and nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import coordinator.correction
from coordinator.commit import Commit, fold_round
from coordinator.events import UpdateHead
from coordinator.robust import Robust, Rule
from coordinator.strategies import strategy
from coordinator.strategies.base import Settings
from models.partition import Vector, initial, partition
from models.spec import SHARED, BPolicy, InputSpec, Mode, ModelSpec

INPUTS = (InputSpec("arm", 2, 12), InputSpec("leg", 1, 12))
SPEC = ModelSpec(
    INPUTS, 3, mode=Mode.LORA, widths=(3,), bins=2, fusion=5, rank=2, b_policy=BPolicy.CORRECTED, encoder_rank=1
)
CUT = partition(SPEC)
STEPS = {"x": {"arm": 2, SHARED: 2}, "y": {"arm": 6, "leg": 6, SHARED: 6}, "z": {"leg": 4, SHARED: 4}}
SAMPLES = {"x": 10, "y": 30, "z": 20}


def begin() -> dict[str, Vector]:
    rng = np.random.default_rng(1)
    return {b: (v + rng.standard_normal(len(v))).astype(np.float32) for b, v in initial(SPEC)[0].items()}


def changes(device: str, block: str) -> Vector:
    rng = np.random.default_rng([ord(device), *map(ord, block)])
    return 0.5 * rng.standard_normal(CUT.size(block)).astype(np.float32)


def heads() -> list[UpdateHead]:
    return [
        UpdateHead(d, d, "b", 1, 1, "1.1", {b: (0, n) for b, n in steps.items()}, SAMPLES[d])
        for d, steps in STEPS.items()
    ]


def folded(policy: BPolicy, name: str = "relief-samples") -> Commit:
    method = strategy(name)(replace(SPEC, b_policy=policy), Settings())
    blocks = begin()
    return fold_round(method, blocks, dict.fromkeys(blocks, 0), heads(), lambda h, b: changes(h.device, b))


def parts(block: str, vector: Vector) -> Vector:
    name = "fusion.lora_b" if block == SHARED else f"fusion.lora_a.{block}"
    return CUT.views(block, vector)[name].astype(np.float64)


def misses(done: Commit, modality: str) -> float:
    """|mean of the cohort's products - B A_m|."""
    blocks, target = begin(), 0.0
    mine = [d for d in STEPS if modality in STEPS[d]]
    for d in mine:
        product = parts(SHARED, blocks[SHARED] + changes(d, SHARED)) @ parts(
            modality, blocks[modality] + changes(d, modality)
        )
        target = target + SAMPLES[d] / sum(SAMPLES[e] for e in mine) * product
    return float(np.linalg.norm(target - parts(SHARED, done.blocks[SHARED]) @ parts(modality, done.blocks[modality])))


@pytest.mark.parametrize("modality", ["arm", "leg"])
def test_the_product_comes_nearer_to_the_mean_of_the_products(modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = folded(BPolicy.AVERAGE)
    near = misses(folded(BPolicy.CORRECTED), modality)
    assert near < 0.9 * misses(plain, modality)
    monkeypatch.setattr(coordinator.correction, "RIDGE", 1e-12)
    blocks = begin()
    mine = [d for d in STEPS if modality in STEPS[d]]
    weights = {d: SAMPLES[d] / sum(SAMPLES[e] for e in mine) for d in mine}
    target = sum(
        weights[d]
        * parts(SHARED, blocks[SHARED] + changes(d, SHARED))
        @ parts(modality, blocks[modality] + changes(d, modality))
        for d in mine
    )
    b = parts(SHARED, plain.blocks[SHARED])
    best = np.linalg.lstsq(b, target, rcond=None)[0]  # nothing is nearer with this B
    np.testing.assert_allclose(parts(modality, folded(BPolicy.CORRECTED).blocks[modality]), best, atol=1e-5)


def test_nothing_but_a_moves() -> None:
    plain, done = folded(BPolicy.AVERAGE), folded(BPolicy.CORRECTED)
    for block in CUT.blocks:
        for name, values in CUT.views(block, done.blocks[block]).items():
            same = np.array_equal(values, CUT.views(block, plain.blocks[block])[name])
            assert same != name.startswith("fusion.lora_a"), name


def test_where_b_is_common_there_is_nothing_to_correct() -> None:
    blocks = begin()
    only = [replace(h, blocks={b: v for b, v in h.blocks.items() if b != SHARED}) for h in heads()]
    for name in ("relief-samples", "relief"):
        both = []
        for policy in (BPolicy.AVERAGE, BPolicy.CORRECTED):
            method = strategy(name)(replace(SPEC, b_policy=policy), Settings())
            both.append(fold_round(method, blocks, dict.fromkeys(blocks, 0), only, lambda h, b: changes(h.device, b)))
        assert all(np.array_equal(both[0].blocks[b], both[1].blocks[b]) for b in both[0].blocks)


def test_step_normalised_changes_count_by_their_steps() -> None:
    blocks = begin()

    def change(steps: dict[str, int], name: str) -> Vector:
        some = [replace(h, blocks=dict.fromkeys(h.blocks, (0, steps[h.device]))) for h in heads()]
        method = strategy(name)(SPEC, Settings())
        done = fold_round(method, blocks, dict.fromkeys(blocks, 0), some, lambda h, b: changes(h.device, b))
        return parts("arm", done.blocks["arm"])

    alike, apart = {"x": 4, "y": 4, "z": 4}, {"x": 2, "y": 6, "z": 4}
    np.testing.assert_allclose(change(alike, "relief"), change(alike, "relief-samples"), atol=1e-6)
    assert np.abs(change(apart, "relief") - change(apart, "relief-samples")).max() > 0.01


def test_robust_statistics_are_not_undone() -> None:
    with pytest.raises(ValueError, match="not together with robust"):
        strategy("relief")(SPEC, Settings(robust=Robust(Rule.MEDIAN)))
