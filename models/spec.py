"""What a model is made of, as plain values that travel in messages and files."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from enum import Enum
from math import isfinite
from typing import Any

# A block's name is a topic level, a parameter name and a column heading.
MODALITY_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
SHARED = "shared"
LARGEST = 2**31 - 1


class Mode(str, Enum):
    """What is trained: everything, or low-rank additions to a frozen base."""

    FULL = "full"
    LORA = "lora"


class BPolicy(str, Enum):
    """What happens to the shared LoRA matrix B: mean(B A_i) = B mean(A_i) holds only while B is common.

    AVERAGE    trained and averaged like everything else; the mean of the products is missed by a residual
    FROZEN     a common orthonormal B that nobody trains
    ALTERNATE  trained in odd rounds, while A rests; A in even ones, while B rests
    CORRECTED  as AVERAGE, and the coordinator moves every A_m towards the mean of the products (coordinator.correction)
    """

    AVERAGE = "average"
    FROZEN = "frozen"
    ALTERNATE = "alternate"
    CORRECTED = "corrected"


@dataclass(frozen=True)
class InputSpec:
    """One modality as the model sees it: windows of shape (channels, samples)."""

    name: str
    channels: int
    samples: int

    def __post_init__(self) -> None:
        if not MODALITY_NAME.match(self.name) or self.name == SHARED:
            raise ValueError(
                f"modality name {self.name!r}: use 1 to 32 of a-z, 0-9 and _, a letter first, and not {SHARED!r}"
            )
        for what in ("channels", "samples"):
            _whole(f"modality {self.name}: {what}", getattr(self, what), 1)


@dataclass(frozen=True)
class ModelSpec:
    """A modality-wise network: an encoder per modality, one fusion layer, one head.

    widths   channels of each convolution; empty means that the encoder only flattens its window
    bins     time bins kept by the average pool behind the convolutions, so d_m = widths[-1] * bins
    fusion   d, the width of the fusion layer
    rank     r of the LoRA projection (lora only); encoder_rank adds adapters to the encoders' convolutions
    """

    inputs: tuple[InputSpec, ...]
    classes: int
    mode: Mode = Mode.FULL
    widths: tuple[int, ...] = (16, 32)
    kernel: int = 5
    stride: int = 2
    bins: int = 4
    fusion: int = 64
    rank: int = 4
    alpha: float = 8.0
    encoder_rank: int = 0
    b_policy: BPolicy = BPolicy.AVERAGE
    seed: int = 0
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(i.name for i in self.inputs)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a model needs at least one modality, each named once; got {list(names)}")
        # Specs arrive in messages and files: every number is checked before anything is computed from it.
        _whole("classes", self.classes, 2)
        for what in ("kernel", "stride", "bins", "fusion", "rank"):
            _whole(what, getattr(self, what), 1)
        for what in ("encoder_rank", "seed"):
            _whole(what, getattr(self, what), 0)
        for width in self.widths:
            _whole("widths", width, 1)
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)) or not isfinite(self.alpha):
            raise ValueError(f"alpha must be a finite number, got {str(self.alpha)[:40]!r}")
        object.__setattr__(self, "names", names)
        for i in self.inputs:
            if conv_lengths(self, i.samples)[-1] < (self.bins if self.widths else 1):
                raise ValueError(
                    f"modality {i.name}: {i.samples} samples are too few for {len(self.widths)} convolutions "
                    f"of kernel {self.kernel}, stride {self.stride} and {self.bins} bins"
                )

    def input(self, name: str) -> InputSpec:
        """The input called `name`; KeyError if the model has none."""
        return self.inputs[self.names.index(name)] if name in self.names else _no_such(name)

    def features(self, name: str) -> int:
        """d_m, the number of features that the encoder of `name` hands to the fusion layer."""
        i = self.input(name)
        return self.widths[-1] * self.bins if self.widths else i.channels * i.samples

    def ordered(self, modalities: Collection[str]) -> tuple[str, ...]:
        """Those of `modalities` that the model has, in its order."""
        return tuple(m for m in self.names if m in modalities)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for msgpack, JSON and TOML."""
        plain = asdict(self)
        plain.pop("names")
        plain["mode"], plain["b_policy"] = self.mode.value, self.b_policy.value
        plain["inputs"], plain["widths"] = list(plain["inputs"]), list(self.widths)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`. ValueError or TypeError where a value is impossible."""
        known = dict(plain)
        known["inputs"] = tuple(InputSpec(**i) for i in plain["inputs"])
        known["widths"] = tuple(plain["widths"])
        known["mode"], known["b_policy"] = Mode(plain["mode"]), BPolicy(plain["b_policy"])
        return cls(**known)


def conv_lengths(spec: ModelSpec, samples: int) -> list[int]:
    """Time steps before and after every convolution (padding kernel // 2), input first."""
    lengths = [samples]
    for _ in spec.widths:
        lengths.append((lengths[-1] + 2 * (spec.kernel // 2) - spec.kernel) // spec.stride + 1)
    return lengths


def _whole(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise ValueError(f"{what} must be a whole number from {least} to {LARGEST}, got {str(value)[:40]!r}")


def _no_such(name: str) -> InputSpec:
    raise KeyError(f"the model has no modality {name!r}")
