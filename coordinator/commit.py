"""Closing a round: fold every block from its trainers' updates, in device order, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.aggregation import Contribution, Divergence, Folded
from coordinator.correction import corrections
from coordinator.events import UpdateHead
from coordinator.lateness import aged
from coordinator.robust import Sliced, robust_fold
from coordinator.strategies.base import Strategy
from models.local import effective_steps
from models.partition import Vector

Delta = Callable[[UpdateHead, str], Vector]  # the change that an update makes to a block


@dataclass(frozen=True)
class Commit:
    """What a round made of the blocks; only blocks that changed are in `blocks` and `versions`."""

    blocks: dict[str, Vector]
    versions: dict[str, int]
    seen: dict[str, tuple[Divergence, float]]


def fold_round(
    strategy: Strategy,
    blocks: Mapping[str, Vector],
    versions: Mapping[str, int],
    heads: Sequence[UpdateHead],
    delta: Delta,
) -> Commit:
    """Fold `heads` (in the order given: device order) into the next versions of `blocks`.

    `delta` is asked for one block of one update at a time, so memory holds a few vectors of one block whatever the
    fleet's size, and the result is the same to the last bit whatever order the updates arrived in. Changes that began
    from older versions than `versions` weigh less.
    """
    momentum, delta = strategy.local().momentum, aged(delta, versions)
    total = sum(head.samples for head in heads)
    done = Commit({}, {}, {})
    strategy.weigh(heads)
    folds: dict[str, Folded] = {}
    for block, base in blocks.items():

        def contributions(block: str = block) -> Iterator[Contribution]:
            for head in heads:
                if block in head.blocks:
                    steps = effective_steps(head.blocks[block][1], momentum)
                    yield Contribution(head.device, head.samples, steps, delta(head, block))

        robust = strategy.settings.robust
        if robust is None:
            folded = strategy.fold(block, base.size, contributions(), total)
        else:
            folded = robust_fold(robust, base.size, _sliced(block, heads, delta, momentum))
        if folded is not None:
            folds[block] = folded
    moved = corrections(strategy.spec, blocks, heads, delta, folds, strategy.weighting, momentum)
    for block, folded in folds.items():
        base = blocks[block]
        done.blocks[block] = strategy.apply(block, base, folded)
        if block in moved:  # behind server momentum, which would carry a correction on into rounds that it is not of
            done.blocks[block] = (done.blocks[block] + moved[block]).astype(base.dtype)
        done.versions[block] = versions[block] + 1
        done.seen[block] = (folded.divergence, float(np.linalg.norm(base.astype(np.float64))))
    return done


def _sliced(block: str, heads: Sequence[UpdateHead], delta: Delta, momentum: float) -> list[Sliced]:
    """The block's trainers for robust statistics, which read a vector as often as they need it and keep none."""
    return [
        Sliced(
            head.device,
            head.samples,
            effective_steps(head.blocks[block][1], momentum),
            lambda start, stop, head=head: delta(head, block)[start:stop],  # type: ignore[misc]
        )
        for head in heads
        if block in head.blocks
    ]
