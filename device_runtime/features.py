"""Features of windows whose encoder did not change: computed lazily, once a round or (frozen encoders) for good."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]


class Features:
    """The features of one modality for N windows; rows are filled the first time a batch asks for them.

    ids    what makes two windows the same from one round to the next; rows that stay keep their features
    """

    def __init__(self) -> None:
        self._rows: Tensor | None = None  # (N, d_m)
        self._have: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._ids: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.computed = 0  # windows that went through the encoder

    @property
    def known(self) -> npt.NDArray[np.int64]:
        """The ids of windows that have features."""
        return self._ids[self._have]

    def align(self, ids: npt.NDArray[np.int64]) -> None:
        """Make row n stand for window ids[n]; what is known of windows that are still there is carried over."""
        if np.array_equal(ids, self._ids):
            return
        have = np.zeros(len(ids), np.bool_)
        if self._rows is not None:
            _, new, old = np.intersect1d(ids, self._ids, return_indices=True)
            new, old = new[self._have[old]], old[self._have[old]]
            rows = self._rows.new_zeros((len(ids), self._rows.shape[1]))
            rows[torch.from_numpy(new).to(rows.device)] = self._rows[torch.from_numpy(old).to(rows.device)]
            have[new] = True
            self._rows = rows
        self._ids, self._have = ids.copy(), have

    def missing(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which of the windows `chosen` have no features yet, each once."""
        return np.unique(chosen[~self._have[chosen]])

    def fill(self, missing: npt.NDArray[np.int64], x: Tensor, encode: Encode) -> None:
        """Encode these windows out of x (N, C, T) without recording a graph."""
        at = torch.from_numpy(missing).to(x.device)
        with torch.no_grad():
            fresh = encode(x[at])  # (n, d_m)
        if self._rows is None:
            self._rows = fresh.new_zeros((len(self._ids), fresh.shape[1]))
        self._rows[at] = fresh
        self._have[missing] = True
        self.computed += len(missing)

    def rows(self, chosen: Tensor) -> Tensor:
        """Features (B, d_m) of windows that all have them; `chosen` lies where they do."""
        assert self._rows is not None
        return self._rows[chosen]


class ResidentFeatures:
    """Features that outlive a round: one `Features` per modality, thrown away when what they are made of changes."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[object, Features]] = {}

    def of(self, name: str, kind: object, ids: npt.NDArray[np.int64]) -> Features:
        """The features of `name` of this `kind` (trainer.kind), aligned to these windows."""
        known = self._kept.get(name)
        if known is None or known[0] != kind:
            known = self._kept[name] = (kind, Features())
        known[1].align(ids)
        return known[1]

    def lacking(self, name: str, kind: object, ids: npt.NDArray[np.int64]) -> int:
        """How many of these windows would have to be encoded."""
        known = self._kept.get(name)
        if known is None or known[0] != kind:
            return len(ids)
        return int((~np.isin(ids, known[1].known)).sum())
