"""The local rule: what one device does with its windows between two rounds. Values and sampling only, no torch.

Device runtime and simulator both follow it, so a round gives the same weights in either. At step t a block takes part
if it has steps left (t < steps[block]) and was not dropped; a block that takes no part gets no gradient, so neither its
weights nor its momentum change. Blocks are trained by SGD with heavy-ball momentum that starts at zero every round.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Local:
    """How a device trains in a round. Travels in `Assignment.training`.

    prox        mu of FedProx: + mu/2 |w - w_t|^2
    dropout     probability that a present modality is left out of a step (its encoder is not run then)
    zero_fill   absent modalities are fed as zeros and trained like present ones (FedAvg as commonly run)
    own_classes  scores of classes of which the device has no window count as 0 (HeteroFL's masked cross-entropy)
    clip        largest gradient norm of a step over all blocks together; 0: none
    cache       features of blocks that are not trained are computed once per window and round
    double      float64 instead of float32, for comparisons
    contrast    weight of a supervised contrastive loss between a step's windows and a second view of them, in which
                some of the device's modalities are zeros (`hidden`); a device that owns one modality has none
    temperature  of that loss
    distil      weight of KL(prediction of the round's base || own prediction)
    wire        how deltas travel: <f4, <f8 (with double), <f2 or |i1 (both with error feedback)
    """

    lr: float = 0.05
    momentum: float = 0.9
    batch: int = 16
    seed: int = 0
    prox: float = 0.0
    dropout: float = 0.0
    zero_fill: bool = False
    own_classes: bool = False
    clip: float = 0.0
    cache: bool = True
    double: bool = False
    contrast: float = 0.0
    temperature: float = 0.1
    distil: float = 0.0
    wire: str = "<f4"

    def passes(self, owned: int) -> int:
        """Forward and backward passes of a step on a device with so many modalities: one per view."""
        return 2 if self.contrast and owned > 1 else 1

    def looks(self, owned: int) -> int:
        """Forward passes of a step: the views', and the base's where its prediction is followed."""
        return self.passes(owned) + (1 if self.distil else 0)

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Local:
        """Unknown keys are ignored, as in every message."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in plain.items() if key in known})


def _rng(local: Local, device: str, round: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([local.seed, zlib.crc32(device.encode()), round, stream]))


def batches(local: Local, device: str, round: int, windows: int, steps: int) -> npt.NDArray[np.int64]:
    """Window indices (steps, batch), drawn epoch by epoch without replacement; keyed by (seed, device, round)."""
    if windows < 1:
        raise ValueError(f"device {device} has no windows to train on")
    rng = _rng(local, device, round, 0)
    epochs = -(-steps * local.batch // windows)
    order = np.concatenate([rng.permutation(windows) for _ in range(epochs)]) if epochs else np.zeros(0, np.int64)
    return order[: steps * local.batch].reshape(steps, local.batch)


def kept(local: Local, device: str, round: int, steps: int, present: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which of the present modalities take part in each step: (steps, len(present)), at least one in every row."""
    rng = _rng(local, device, round, 1)
    draws = rng.random((steps, len(present)))
    keep: npt.NDArray[np.bool_] = draws >= local.dropout
    rows = np.flatnonzero(~keep.any(axis=1))
    keep[rows, draws[rows].argmax(axis=1)] = True
    return keep


def hidden(local: Local, device: str, round: int, owned: Sequence[str]) -> tuple[str, ...]:
    """Modalities that the second view of this round does not show: 1 to all but one of `owned`, none without it."""
    if local.passes(len(owned)) == 1:
        return ()
    rng = _rng(local, device, round, 2)
    drawn = rng.choice(len(owned), int(rng.integers(1, len(owned))), replace=False)
    return tuple(owned[n] for n in sorted(drawn))


def last_epoch(local: Local, windows: int, steps: int) -> int:
    """The first step of a round's last pass over the windows, in which the entropy of predictions is measured."""
    return max(0, steps - -(-windows // local.batch))


def effective_steps(steps: int, momentum: float) -> float:
    """a_i: how far `steps` unit gradients carry the weights (FedNova, arXiv 2007.07481, heavy-ball momentum)."""
    if momentum == 0.0:
        return float(steps)
    return float((steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum))
