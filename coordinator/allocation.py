"""Blocks x steps under a device's budget: what it trains this round, and for how many local steps.

maximise sum over chosen m of U_m log(1 + s)   subject to   seconds(x, s), joules(x, s), bytes(x) within the budget.
For given blocks the largest number of steps that fits is optimal, so up to EXACT owned blocks all subsets are tried at
once; above that, blocks are added greedily by what they bring for what they cost. The shared block is always trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from math import log1p
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.work import Budget, Member, Work
from models.spec import SHARED

EXACT = 12  # owned blocks up to which all 2^n subsets are tried

Steps = dict[str, int]


def most_steps(w: Work, chosen: Collection[str], budget: Budget, cap: int) -> int:
    """Most local steps, at most `cap`, with which training `chosen` and the shared block keeps the budget, or 0."""
    if sum(w.size[b] for b in (*chosen, SHARED)) > budget.bytes:
        return 0
    once = sum(w.still[m] for m in w.blocks if m not in chosen)
    step = w.step + sum(w.train[m] for m in chosen)
    left = [cap]
    seconds = budget.seconds - w.fixed - once - sum(w.upload[b] for b in (*chosen, SHARED))
    for spare, price in ((seconds, step), (budget.joules - w.watts * once, w.watts * step)):
        if price > 0:
            left.append(int(min(max(spare, 0.0) / price * (1 + 1e-12), cap)))
        elif spare < 0:
            left.append(0)
    return min(left)


def allocate(w: Work, utility: Mapping[str, float], budget: Budget, cap: int, *, forced: Collection[str] = ()) -> Steps:
    """The best blocks and their common number of steps for one device; {} if not even one step fits.

    `forced` blocks (floors of the fleet) are in the result unless the budget does not allow a single step with them.
    """
    forced = [m for m in w.blocks if m in set(forced)]
    best = (
        _exact(w, utility, budget, cap, forced) if len(w.blocks) <= EXACT else _greedy(w, utility, budget, cap, forced)
    )
    if best or not forced:
        return best
    return allocate(w, utility, budget, cap)


def _as_steps(chosen: Iterable[str], steps: int) -> Steps:
    return {**dict.fromkeys(chosen, steps), SHARED: steps} if steps else {}


@lru_cache(maxsize=EXACT + 1)
def _subsets(n: int) -> npt.NDArray[Any]:
    """All subsets of n blocks, a row each: (2^n, n) of 0 and 1."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1


def _exact(w: Work, utility: Mapping[str, float], budget: Budget, cap: int, forced: Sequence[str]) -> Steps:
    masks = _subsets(len(w.blocks))
    if forced:
        must = np.array([m in forced for m in w.blocks], bool)
        masks = masks[(masks[:, must] == 1).all(axis=1)]

    def total(of: Mapping[str, float], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        sums: npt.NDArray[Any] = rows @ np.array([of[m] for m in w.blocks], float)
        return sums

    once = total(w.still, 1 - masks)
    step = w.step + total(w.train, masks)
    spare = budget.seconds - w.fixed - once - total(w.upload, masks) - w.upload[SHARED]
    steps = np.minimum(_whole(spare, step, cap), _whole(budget.joules - w.watts * once, w.watts * step, cap))
    steps[total(w.size, masks) + w.size[SHARED] > budget.bytes] = 0
    gain = total(utility, masks) * np.log1p(steps)
    gain[steps == 0] = -1.0
    # Among equals the one with more steps, then the one with more blocks: fusion and head learn from them too.
    order = np.lexsort((masks.sum(axis=1), steps, gain))
    best = order[-1]
    return _as_steps([m for m, on in zip(w.blocks, masks[best], strict=True) if on], int(steps[best]))


def _whole(spare: npt.NDArray[Any], price: npt.NDArray[Any], cap: int) -> npt.NDArray[Any]:
    """floor(spare / price) within [0, cap]; a price of zero allows all or, with nothing spare, none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(price > 0, np.maximum(spare, 0.0) / price * (1 + 1e-12), np.where(spare >= 0, cap, 0))
    whole: npt.NDArray[Any] = np.minimum(ratio, cap).astype(np.int64)
    return whole


def _greedy(w: Work, utility: Mapping[str, float], budget: Budget, cap: int, forced: Sequence[str]) -> Steps:
    """Add the block that raises sum U log(1 + s) most, until none does: exact subsets are out of reach."""
    chosen = list(forced)
    steps = most_steps(w, chosen, budget, cap)

    def gain(blocks: Sequence[str], s: int) -> float:
        return sum(utility[m] for m in blocks) * log1p(s) if s else -1.0

    now = gain(chosen, steps)
    while True:
        options = []
        for m in w.blocks:
            if m not in chosen:
                s = most_steps(w, [*chosen, m], budget, cap)
                options.append((gain([*chosen, m], s), m, s))
        best = max(options, default=(-1.0, "", 0))
        if best[0] <= now:
            return _as_steps(chosen, steps)
        now, steps = best[0], best[2]
        chosen.append(best[1])


def water_fill(
    w: Work, utility: Mapping[str, float], budget: Budget, cap: int, *, forced: Collection[str] = ()
) -> Steps:
    """Steps of their own for every block: maximise sum U_m log(1 + s_m) under sum c_m s_m <= budget.

    Closed form s_m = U_m / (lambda c_m) - 1, clipped to [0, cap], lambda by bisection; then rounded down. The shared
    block runs as long as the longest block. Falls back to `allocate` where not even that fits.
    """
    owned = list(w.blocks)
    price = {m: w.train[m] + w.step / max(len(owned), 1) for m in owned}

    def at(lam: float) -> Steps:
        steps = {}
        for m in owned:
            s = cap if price[m] <= 0 else min(cap, int(max(utility[m] / (lam * price[m]) - 1.0, 0.0)))
            s = max(s, 1) if m in forced else s
            if s:
                steps[m] = s
        longest = max(steps.values(), default=0)
        return {**steps, SHARED: longest} if longest else {}

    low, high = 1e-12, 1e12
    best: Steps = {}
    for _ in range(80):
        middle = (low * high) ** 0.5
        steps = at(middle)
        if fits(w, steps, budget):
            best, high = steps, middle
        else:
            low = middle
    return best or allocate(w, utility, budget, cap, forced=forced)


def fits(w: Work, steps: Mapping[str, int], budget: Budget) -> bool:
    """Whether these steps keep seconds, joules and bytes."""
    slack = 1 + 1e-9
    return (
        w.seconds(steps) <= budget.seconds * slack
        and w.joules(steps) <= budget.joules * slack
        and w.bytes(steps) <= budget.bytes
    )


def floors(
    due: Iterable[str], members: Sequence[Member], works: Mapping[str, Work], budgets: Mapping[str, Budget]
) -> dict[str, set[str]]:
    """Who must train which block this round: every `due` block by its two cheapest owners (one, if only one owns it).

    An owner counts only if one step of the block, on top of what it must do already, keeps its budget.
    """
    forced: dict[str, set[str]] = {m.id: set() for m in members}
    for block in due:
        owners = [m.id for m in members if block in m.owned]
        able = [d for d in owners if most_steps(works[d], sorted(forced[d] | {block}), budgets[d], 1)]
        able.sort(key=lambda d: (works[d].train[block] + works[d].upload[block], d))
        for d in able[:2]:
            forced[d].add(block)
    return forced
