"""Which weights answer for which modalities, where a method has more than the one model that the blocks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.partition import Vector

Weights = Mapping[str, Vector]  # block -> vector, the shared block among them


@dataclass(frozen=True)
class Serving:
    """How predictions are made from the features that the encoders of the common blocks give.

    alone   modality -> weights of its own model (its block and its own head); several modalities without a joint model
            answer with the mean of their class probabilities
    joint   modalities, in the model's order -> (share, weights) of the models that fuse exactly these; where there are
            several (clusters of devices), each is judged and counts by its share
    """

    alone: Mapping[str, Weights]
    joint: Mapping[tuple[str, ...], Sequence[tuple[float, Weights]]] = field(default_factory=dict)
