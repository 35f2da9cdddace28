"""The ridge correction of LoRA's A where B is trained too (models.spec.BPolicy.CORRECTED).

What devices learned is the mean of their products, sum p_i B_i A_{m,i}. Averaging A and B apart misses it by a
residual, R_m = sum p_i B_i A_{m,i} - B A_m, with the averaged B and A_m. The correction adds to A_m what brings it
nearest, C_m = (B^T B + lambda I)^-1 B^T R_m, which minimises |R_m - B C|^2 + lambda |C|^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from coordinator.aggregation import Folded, Weighting
from coordinator.events import UpdateHead
from models.local import effective_steps
from models.partition import Vector, partition
from models.spec import SHARED, BPolicy, Mode, ModelSpec

RIDGE = 0.1  # lambda as a part of B's mean squared column: directions that B hardly has are left alone


def corrections(
    spec: ModelSpec,
    blocks: Mapping[str, Vector],
    heads: Sequence[UpdateHead],
    delta: Callable[[UpdateHead, str], Vector],
    folds: Mapping[str, Folded],
    weighting: Weighting,
    momentum: float,
) -> dict[str, Vector]:
    """Modality -> what is added to its block (float64, zero but for A_m); empty under every other policy.

    `blocks` is where the round began. Devices weigh and are step-normalised as in `fold`. Holds one (d, d_m) matrix a
    modality, whatever the fleet's size, and asks for every change once.
    """
    if spec.mode is not Mode.LORA or spec.b_policy is not BPolicy.CORRECTED:
        return {}
    if SHARED not in folds:
        return {}  # B has not moved: the mean of the products is exact
    cut = partition(spec)

    def tensor(block: str, vector: Vector) -> Vector:
        name = "fusion.lora_b" if block == SHARED else f"fusion.lora_a.{block}"
        return np.asarray(cut.views(block, vector)[name], np.float64)

    before = {block: tensor(block, blocks[block]) for block in folds}  # A_m (r, d_m), B (d, r)
    after = {block: before[block] + tensor(block, folds[block].delta) for block in folds}
    b = after.pop(SHARED)
    gram = b.T @ b
    ridge = RIDGE * np.trace(gram) / len(gram)
    if ridge <= 0.0:
        return {}
    scales = {block: _scales(block, heads, weighting, momentum) for block in folds}
    samples = {m: sum(head.samples for head in heads if m in head.blocks) for m in after}
    residuals = {m: -b @ a for m, a in after.items()}
    for head in heads:
        own = {
            block: before[block] + scales[block][head.device] * tensor(block, delta(head, block))
            for block in before
            if block in head.blocks
        }
        own_b = own.pop(SHARED, before[SHARED])
        for m, own_a in own.items():
            residuals[m] += (head.samples / samples[m]) * (own_b @ own_a)
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), b.T)  # (r, d)
    done = {}
    for m, residual in residuals.items():
        done[m] = np.zeros(cut.size(m))
        cut.views(m, done[m])[f"fusion.lora_a.{m}"][...] = solved @ residual
    return done


def _scales(block: str, heads: Sequence[UpdateHead], weighting: Weighting, momentum: float) -> dict[str, float]:
    """device -> what its change counts: tau / a_i in the step-normalised mean, else 1."""
    if weighting is not Weighting.NOVA:
        return {head.device: 1.0 for head in heads}
    steps = {h.device: effective_steps(h.blocks[block][1], momentum) for h in heads if block in h.blocks}
    samples = sum(head.samples for head in heads if head.device in steps)
    tau = sum(head.samples * steps[head.device] for head in heads if head.device in steps) / max(samples, 1)
    return {device: tau / own for device, own in steps.items()}
