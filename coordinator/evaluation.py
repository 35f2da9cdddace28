"""How good the model is as its devices would see it: macro-F1 in-subject, on held-out subjects, on the rare modality.

in_subject     test windows of every device's own subjects, through the modalities it owns, pooled over devices
held_out       windows of subjects that nobody trained on, through each ownership in the fleet, weighted by its devices
rare_owners    held-out windows through what the owners of the rarest modality own           (reading i)
rare_only      held-out windows through the rarest modality alone                            (reading ii, the headline)
rare_drop      how much rare_owners loses when the rarest modality is taken away              (reading iii)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.network import Network
from models.partition import Vector
from models.spec import ModelSpec

Confusion = npt.NDArray[np.float64]


def macro_f1(confusion: Confusion) -> float:
    """Mean F1 over the classes that occur; confusion[true, predicted] may hold weights."""
    hit = np.diag(confusion)
    true, said = confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = np.divide(2 * hit, true + said, out=np.zeros_like(hit), where=true + said > 0)
    return float(f1[true > 0].mean()) if (true > 0).any() else 0.0


@dataclass(frozen=True)
class Labelled:
    """Windows with their classes: x modality -> (N, channels, samples), raw units; y (N,); subject (N,) names."""

    x: Mapping[str, npt.NDArray[np.float32]]
    y: npt.NDArray[np.int64]
    subject: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Owner:
    """A device for the purpose of evaluation: what it senses and whom it is worn by."""

    modalities: tuple[str, ...]
    subjects: tuple[str, ...]


class Evaluator:
    """Scores a model given as blocks. Features are computed once per modality, the fusion once per ownership."""

    def __init__(self, spec: ModelSpec, test: Labelled, held_out: Labelled, owners: Sequence[Owner]) -> None:
        if not owners:
            raise ValueError(
                "an evaluation needs at least one device: without owners there is nobody to see the windows"
            )
        self.spec, self._test, self._held_out, self._owners = spec, test, held_out, owners
        counts = Counter(m for owner in owners for m in owner.modalities)
        self.rare = min((m for m in spec.names if counts[m]), key=lambda m: counts[m])
        self._network = Network(spec)

    def __call__(
        self,
        blocks: Mapping[str, Vector],
        base: Mapping[str, Vector],
        scales: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        *,
        zero_fill: bool = False,
    ) -> dict[str, float]:
        """Scores by name, 0 to 1. `zero_fill` feeds absent modalities as zeros, for methods that train so."""
        for name, vector in base.items():
            self._network.load(name, vector, base=True)
        for name, vector in blocks.items():
            self._network.load(name, vector)
        with torch.no_grad():
            test, held_out = self._features(self._test, scales), self._features(self._held_out, scales)
            zeros = self._zeros() if zero_fill else {}
            return self._scores(test, held_out, zeros)

    def _features(self, windows: Labelled, scales: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        features = {}
        for name in self.spec.names:
            if name in windows.x and len(windows):
                x = np.ascontiguousarray(windows.x[name])
                if name in scales:
                    center, width = (np.asarray(v, np.float32)[:, None] for v in scales[name])
                    x = (x - center) / width
                features[name] = self._network.encode(name, torch.from_numpy(x))
        return features

    def _zeros(self) -> dict[str, torch.Tensor]:
        return {i.name: self._network.encode(i.name, torch.zeros(1, i.channels, i.samples)) for i in self.spec.inputs}

    def _confusion(
        self, features: Mapping[str, torch.Tensor], y: Any, modalities: Sequence[str], zeros: Mapping[str, torch.Tensor]
    ) -> Confusion:
        seen = {m: features[m] for m in self.spec.names if m in modalities and m in features}
        if zeros:
            seen = {m: seen.get(m, zeros[m].expand(len(y), -1)) for m in self.spec.names}
        confusion = np.zeros((self.spec.classes, self.spec.classes))
        if seen and len(y):
            np.add.at(confusion, (y, self._network.fuse(seen).argmax(1).numpy()), 1.0)
        return confusion

    def _scores(
        self, test: dict[str, torch.Tensor], held_out: dict[str, torch.Tensor], zeros: Mapping[str, torch.Tensor]
    ) -> dict[str, float]:
        y = self._held_out.y
        in_subject = np.zeros((self.spec.classes, self.spec.classes))
        for owner, devices in Counter(self._owners).items():
            mine = np.isin(self._test.subject, owner.subjects)
            rows = {m: h[torch.from_numpy(mine)] for m, h in test.items()}
            in_subject += devices * self._confusion(rows, self._test.y[mine], owner.modalities, zeros)
        outside = np.zeros_like(in_subject)
        for modalities, devices in Counter(o.modalities for o in self._owners).items():
            outside += devices * self._confusion(held_out, y, modalities, zeros)
        with_rare, without = np.zeros_like(in_subject), np.zeros_like(in_subject)
        for modalities, devices in Counter(o.modalities for o in self._owners if self.rare in o.modalities).items():
            rest = [m for m in modalities if m != self.rare]
            with_rare += devices * self._confusion(held_out, y, modalities, zeros)
            without += devices * self._confusion(held_out, y, rest, zeros)
        return {
            "in_subject": macro_f1(in_subject),
            "held_out": macro_f1(outside),
            "rare_owners": macro_f1(with_rare),
            "rare_only": macro_f1(self._confusion(held_out, y, [self.rare], zeros)),
            "rare_drop": macro_f1(with_rare) - macro_f1(without),
        }
