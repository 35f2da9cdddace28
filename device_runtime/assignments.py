"""What an assignment asks of this device: which blocks, whether it can be done, until when."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import lru_cache

from device_runtime.downloads import Held
from models.local import Local
from models.partition import partition
from models.spec import SHARED, ModelSpec
from protocol.messages import Assignment, Status

RELEASE = ".v{}"  # block m of the registered version 12 is published as the block "m.v12"
BASE = ".base"  # the frozen part of block m is published as the block "m.base"


def present(a: Assignment, local: Local, model: ModelSpec, owned: Collection[str]) -> tuple[str, ...]:
    """The modalities to compute with: those the assignment names versions of and we own, or all with zero filling."""
    return tuple(m for m in model.names if m in a.versions and (m in owned or local.zero_fill))


def blocks(names: Collection[str], model: ModelSpec) -> tuple[str, ...]:
    """The blocks that computing with these modalities needs: theirs, the shared one, and their frozen bases."""
    trained, bases = (*names, SHARED), _bases(model)
    return (*trained, *(b + BASE for b in trained if b in bases))


@lru_cache(maxsize=4)
def _bases(model: ModelSpec) -> frozenset[str]:
    return frozenset(block for block, layout in partition(model).frozen.items() if layout)


def objection(a: Assignment, local: Local, model: ModelSpec, status: Status, decline: str) -> str:
    """Why the assignment cannot be done, or nothing."""
    if not status.can_train:
        return "this device cannot train: torch is not installed"
    if decline:
        return decline
    if not status.windows:
        return "there are no labelled windows to train on"
    unknown = sorted(set(a.steps) - {*model.names, SHARED})
    if unknown:
        return f"blocks {unknown} are not in the model"
    here = present(a, local, model, status.modalities)
    if not here:
        return f"it names versions of {sorted(a.versions)}, this device has {sorted(status.modalities)}"
    foreign = sorted(b for b, s in a.steps.items() if s and b != SHARED and b not in here)
    if foreign:
        return f"blocks {foreign} cannot be trained here: this device has {sorted(status.modalities)}"
    if SHARED not in a.versions:
        return f"it names no version of the block {SHARED!r}"
    if not any(a.steps.values()):
        return "it asks for no steps"
    return ""


def missing(
    a: Assignment, local: Local, model: ModelSpec, owned: Collection[str], held: Mapping[str, Held]
) -> tuple[str, ...]:
    """Blocks that are not here in the version that the assignment starts from."""
    lacking = []
    for block in blocks(present(a, local, model, owned), model):
        have, version = held.get(block), a.versions.get(block)
        wrong = version is not None and have and (have.manifest.version, have.manifest.epoch) != (version, a.epoch)
        if not have or wrong:
            lacking.append(block)
    return tuple(lacking)


def latest(a: Assignment, received: float, model: ModelSpec) -> float:
    """When training must end so that the deadline is kept, the upload's slot and seconds included; inf: never."""
    if a.deadline <= 0:
        return math.inf
    cut = partition(model)
    upload = sum(cut.size(b) for b, s in a.steps.items() if s) * 4 / a.rate if a.rate > 0 else 0.0
    return received + a.deadline - a.slot - upload
