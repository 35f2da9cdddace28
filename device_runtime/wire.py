"""How a delta travels: as it is, or in fewer bits with what was lost added to the next one (error feedback)."""

from __future__ import annotations

import numpy as np

from models.partition import Vector
from protocol.messages import Tensor

EXACT = ("<f4", "<f8")


class Wire:
    """Encodes deltas block by block and remembers what rounding took away.

    A remainder counts once its update was accepted; of a refused update nothing reached the model, so nothing is owed.
    It is kept in memory: a restart forgets at most one rounding error per block.
    """

    def __init__(self) -> None:
        self._owed: dict[str, Vector] = {}
        self._pending: dict[str, dict[str, Vector]] = {}

    def encode(self, update: str, deltas: dict[str, Vector], dtype: str) -> dict[str, Tensor]:
        """Tensors of an update's blocks. ValueError for a dtype that is not one of <f4, <f8, <f2, |i1."""
        if dtype in EXACT:
            return {block: Tensor.of(delta.astype(dtype, copy=False)) for block, delta in deltas.items()}
        if dtype not in ("<f2", "|i1"):
            raise ValueError(f"a delta cannot travel as {dtype!r}: use one of {[*EXACT, '<f2', '|i1']}")
        tensors, remainders = {}, {}
        for block, delta in deltas.items():
            owed = self._owed.get(block)
            wanted = delta.astype(np.float32)
            if owed is not None and owed.shape == wanted.shape:
                wanted = wanted + owed
            tensors[block] = half(wanted) if dtype == "<f2" else quarter(wanted)
            remainders[block] = wanted - tensors[block].array().astype(np.float32)
        self._pending[update] = remainders
        return tensors

    def settle(self, update: str, accepted: bool) -> None:
        """The update was answered."""
        remainders = self._pending.pop(update, None)
        if accepted and remainders:
            self._owed.update(remainders)

    def forget(self) -> None:
        """Another model: nothing is owed to it."""
        self._owed.clear()
        self._pending.clear()


def half(values: Vector) -> Tensor:
    """`values` (float32) as float16, saturating: an infinity would poison the mean."""
    import torch  # here, since the core goes without; numpy takes many times as long where values are tiny

    most = torch.finfo(torch.float16).max
    return Tensor.of(torch.from_numpy(values).clamp(-most, most).half().numpy())


def quarter(values: Vector) -> Tensor:
    """int8 with one scale: the largest value becomes 127."""
    peak = float(np.abs(values).max(initial=0.0))
    scale = float(np.float32(peak / 127.0))
    if scale == 0.0:
        return Tensor.of(np.zeros(len(values), "|i1"))
    return Tensor.of(np.clip(np.rint(values / np.float32(scale)), -127, 127).astype("|i1"), scale=scale)
