"""The edge of the coordinator: an update's tensors are checked before anything of it counts."""

from __future__ import annotations

import numpy as np

from models.partition import Partition
from protocol.messages import Update, update_id


def check(update: Update, device: str, cut: Partition) -> str:
    """Why this update cannot be taken, or an empty string: owner, block names, shapes, dtypes, finite values.

    Whether it answers an assignment is the round core's to say.
    """
    if update.device != device:
        return f"device: the update names {update.device!r} on the topic of {device!r}"
    if update.id != update_id(update.device, update.boot, update.assignment):
        return f"id: {update.id[:40]!r} is not what device, boot and assignment make of it"
    for block, work in update.blocks.items():
        if block not in cut.trainable:
            return f"block {block[:40]}: the model has no such block"
        try:
            values = work.delta.array()
        except ValueError:
            return f"block {block}: {len(work.delta.data)} bytes are no whole number of {work.delta.dtype} values"
        if values.size != cut.size(block):
            return f"block {block}: {values.size} values, expected {cut.size(block)}"
        # One pass without a temporary: a sum of squares is finite only if every value is (and none overflows).
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(np.dot(values, values))
        if suspect and not np.isfinite(values).all():
            return f"block {block}: not all values are finite"
    return ""
