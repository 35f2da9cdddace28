"""The stand-in for training: a named, deterministic function instead of gradient descent.

Named so that nobody takes these rounds for learning: what is tested is that exactly these changes, and no others, are
counted exactly once.
"""

from __future__ import annotations

import zlib

import numpy as np

from device_runtime.events import StartTraining
from models.partition import Partition, Vector
from protocol.messages import BlockWork, Tensor, Update, update_id


def stand_in_change(device: str, assignment: str, block: str, steps: int, base: Vector) -> Vector:
    """What `steps` steps would change: pseudo-random, alike for alike arguments, proportional to the steps."""
    seed = zlib.crc32(f"{device} {assignment} {block}".encode())
    change = np.random.Generator(np.random.PCG64(seed)).standard_normal(base.size)
    return (0.01 * steps * (change - 0.1 * base)).astype(base.dtype)


def stand_in_update(device: str, boot: str, start: StartTraining, cut: Partition, share: float, samples: int) -> Update:
    """The update of a device that came to `share` of its steps."""
    a = start.assignment
    blocks = {}
    for block, steps in a.steps.items():
        done = int(steps * share) if share < 1 else steps
        if done:
            change = stand_in_change(device, a.id, block, done, start.blocks[block].vector)
            blocks[block] = BlockWork(version=a.versions[block], steps=done, delta=Tensor.of(change))
    return Update(
        id=update_id(device, boot, a.id),
        device=device,
        boot=boot,
        round=a.round,
        epoch=a.epoch,
        assignment=a.id,
        blocks=blocks,
        samples=samples,
        partial=share < 1,
        seconds=1.0,
    )
