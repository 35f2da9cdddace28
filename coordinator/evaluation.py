"""How good the model is as its devices would see it: macro-F1 in-subject, on held-out subjects, on the rare modality.

in_subject     test windows of every device's own subjects, through the modalities it owns, pooled over devices
held_out       windows of subjects that nobody trained on, through each ownership in the fleet, weighted by its devices
rare_owners    held-out windows through what the owners of the rarest modality own           (reading i)
rare_only      held-out windows through the rarest modality alone                            (reading ii, the headline)
rare_drop      how much rare_owners loses when the rarest modality is taken away              (reading iii)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from coordinator.serving import Serving, Weights
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
        serving: Serving | None = None,
    ) -> dict[str, float]:
        """Scores by name, 0 to 1. `zero_fill` feeds absent modalities as zeros, for methods that train so.

        `serving` says which weights answer for which modalities, for methods that have several models.
        """
        for name, vector in base.items():
            self._network.load(name, vector, base=True)
        for name, vector in blocks.items():
            self._network.load(name, vector)
        with torch.no_grad():
            test, held_out = self._features(self._test, scales), self._features(self._held_out, scales)
            zeros = self._zeros() if zero_fill else {}
            return self._scores(test, held_out, zeros, serving)

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
        self,
        features: Mapping[str, torch.Tensor],
        y: Any,
        modalities: Sequence[str],
        zeros: Mapping[str, torch.Tensor],
        serving: Serving | None,
    ) -> Confusion:
        seen = {m: features[m] for m in self.spec.names if m in modalities and m in features}
        if zeros:
            seen = {m: seen.get(m, zeros[m].expand(len(y), -1)) for m in self.spec.names}
        confusion = np.zeros((self.spec.classes, self.spec.classes))
        if seen and len(y):
            for share, scores in self._answers(seen, serving):
                np.add.at(confusion, (y, scores.argmax(1).numpy()), share)
        return confusion

    def _answers(
        self, seen: Mapping[str, torch.Tensor], serving: Serving | None
    ) -> Iterator[tuple[float, torch.Tensor]]:
        """Scores (N, classes) of each model that answers for these features, with its share."""
        if serving is None:
            yield 1.0, self._network.fuse(seen)
            return
        joint = serving.joint.get(tuple(seen))
        if joint is None:
            yield 1.0, torch.stack([self._with(serving.alone[m], {m: h}).softmax(1) for m, h in seen.items()]).mean(0)
            return
        for share, weights in joint:
            yield share, self._with(weights, seen)

    def _with(self, weights: Weights, seen: Mapping[str, torch.Tensor]) -> torch.Tensor:
        for block, vector in weights.items():
            self._network.load(block, vector)
        return self._network.fuse(seen)

    def _scores(
        self,
        test: dict[str, torch.Tensor],
        held_out: dict[str, torch.Tensor],
        zeros: Mapping[str, torch.Tensor],
        serving: Serving | None,
    ) -> dict[str, float]:
        y = self._held_out.y
        in_subject = np.zeros((self.spec.classes, self.spec.classes))
        for owner, devices in Counter(self._owners).items():
            mine = np.isin(self._test.subject, owner.subjects)
            rows = {m: h[torch.from_numpy(mine)] for m, h in test.items()}
            in_subject += devices * self._confusion(rows, self._test.y[mine], owner.modalities, zeros, serving)
        outside = np.zeros_like(in_subject)
        for modalities, devices in Counter(o.modalities for o in self._owners).items():
            outside += devices * self._confusion(held_out, y, modalities, zeros, serving)
        with_rare, without = np.zeros_like(in_subject), np.zeros_like(in_subject)
        for modalities, devices in Counter(o.modalities for o in self._owners if self.rare in o.modalities).items():
            rest = [m for m in modalities if m != self.rare]
            with_rare += devices * self._confusion(held_out, y, modalities, zeros, serving)
            without += devices * self._confusion(held_out, y, rest, zeros, serving)
        return {
            "in_subject": macro_f1(in_subject),
            "held_out": macro_f1(outside),
            "rare_owners": macro_f1(with_rare),
            "rare_only": macro_f1(self._confusion(held_out, y, [self.rare], zeros, serving)),
            "rare_drop": macro_f1(with_rare) - macro_f1(without),
        }
