"""Layers with a weight of their own for every unit, forward and backward, as batched matrix products.

A unit is one modality of one device. Arrays are channels-last, so that a convolution's columns are plain strided rows:
im2col and a batched product run two to three times faster on a CPU than a grouped convolution, and the backward pass
written by hand keeps nothing that it does not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.partition import TensorSpec, Vector
from models.spec import ModelSpec, conv_lengths

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How a block's vector lies in a stacked matrix (units, values): reordered, so that its products need no transpose.

    order   position in the stack -> position in the block's vector
    parts   short tensor name -> (start, shape) within a row of the stack
    """

    order: Tensor
    parts: dict[str, tuple[int, tuple[int, ...]]]

    @property
    def size(self) -> int:
        return len(self.order)

    def stack(self, vectors: Sequence[Vector], dtype: torch.dtype) -> Tensor:
        """Vectors of the same block layout -> (units, values). Equal objects are reordered once."""
        rows: dict[int, int] = {}
        unique: list[Tensor] = []
        for vector in vectors:
            if id(vector) not in rows:
                rows[id(vector)] = len(unique)
                unique.append(torch.as_tensor(np.array(vector), dtype=dtype)[self.order])
        table = torch.stack(unique) if unique else torch.zeros(0, self.size, dtype=dtype)
        return table[torch.tensor([rows[id(vector)] for vector in vectors], dtype=torch.long)]

    def unstack(self, stack: Tensor) -> Vector:
        """(units, values) -> the same rows in the order of the block's vector."""
        back = torch.empty_like(self.order)
        back[self.order] = torch.arange(self.size)
        flat: Vector = stack.index_select(1, back).numpy()
        return flat

    def views(self, stack: Tensor) -> dict[str, Tensor]:
        """The tensors of every unit as views: name -> (units, *shape)."""
        return {
            name: stack[:, start : start + prod(shape)].view(len(stack), *shape)
            for name, (start, shape) in self.parts.items()
        }


def layout_of(spec: ModelSpec, tensors: Sequence[TensorSpec]) -> Layout:
    """The stacked layout of a block (models.partition): convolutions (kernel * in, out), everything else (in, out)."""
    order: list[npt.NDArray[np.int64]] = []
    parts: dict[str, tuple[int, tuple[int, ...]]] = {}
    start = 0
    for t in tensors:
        place = np.arange(t.size).reshape(t.shape) + start
        name = short_name(t.name)
        if name.endswith("weight") and len(t.shape) == 3:  # (out, in, kernel)
            place = place.transpose(2, 1, 0).reshape(-1, t.shape[0])
        elif name.endswith("down"):  # (rank, in * kernel)
            place = place.reshape(t.shape[0], -1, spec.kernel).transpose(2, 1, 0).reshape(-1, t.shape[0])
        elif name in ("fusion", "lora_a") and spec.widths:  # features come as (bins, channels)
            place = place.reshape(t.shape[0], spec.widths[-1], spec.bins).transpose(2, 1, 0).reshape(-1, t.shape[0])
        elif len(t.shape) == 2:
            place = place.T
        parts[name] = (start, tuple(place.shape))
        order.append(place.ravel())
        start += t.size
    return Layout(torch.from_numpy(np.concatenate(order)) if order else torch.zeros(0, dtype=torch.long), parts)


def short_name(name: str) -> str:
    """A tensor's name without its modality: encoders.chest.0.weight -> 0.weight, fusion.weight.chest -> fusion."""
    if name.startswith("encoders."):
        return name.split(".", 2)[2]
    if name.startswith("fusion.weight."):
        return "fusion"
    return "lora_a" if name.startswith("fusion.lora_a.") else name


@dataclass(frozen=True)
class Convolutions:
    """The encoder of one input shape. Saved activations are (columns, output before the ReLU) of each layer."""

    channels: int
    samples: int
    widths: tuple[int, ...]
    kernel: int
    stride: int
    bins: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, spec: ModelSpec, channels: int, samples: int) -> Convolutions:
        lengths = tuple(conv_lengths(spec, samples))
        return cls(channels, samples, spec.widths, spec.kernel, spec.stride, spec.bins, lengths)

    @property
    def pad(self) -> int:
        return self.kernel // 2 if self.widths else 0

    def padded(self, x: Vector) -> Tensor:
        """Windows (N, channels, samples) -> rows as the encoder reads them, with one row of zeros behind the last."""
        n = len(x)
        if not self.widths:
            flat = torch.zeros(n + 1, self.channels * self.samples)
            flat[:n] = torch.from_numpy(np.ascontiguousarray(x).reshape(n, -1))
            return flat
        rows = torch.zeros(n + 1, self.samples + 2 * self.pad, self.channels)
        rows[:n, self.pad : self.pad + self.samples] = torch.from_numpy(np.ascontiguousarray(x)).transpose(1, 2)
        return rows

    def forward(self, weights: Tensors, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(units, N, padded samples, channels) -> features (units, N, bins * widths[-1]) and what backward needs."""
        units, n = x.shape[:2]
        saved = []
        for i, width in enumerate(self.widths):
            length = self.lengths[i + 1]
            columns = self._columns(x, length)  # (units, N * length, kernel * inside)
            y = torch.baddbmm(weights[f"{i}.bias"].unsqueeze(1), columns, weights[f"{i}.weight"])
            saved.append((columns, y))  # y: (units, N * length, width), before the ReLU
            if i + 1 < len(self.widths):
                x = y.new_empty(units, n, length + 2 * self.pad, width)
                x[:, :, : self.pad] = 0
                x[:, :, self.pad + length :] = 0
                torch.clamp_min(y.view(units, n, length, width), 0.0, out=x[:, :, self.pad : self.pad + length])
        last, width = self.lengths[-1], self.widths[-1]
        h = torch.relu(y).view(units, n, last, width)
        if last % self.bins == 0:
            pooled = h.view(units, n, self.bins, last // self.bins, width).mean(3)
        else:
            pooled = torch.matmul(self._pool(h), h)
        return pooled.view(units, n, self.bins * width), saved

    def backward(self, weights: Tensors, saved: list[tuple[Tensor, Tensor]], dh: Tensor, gradients: Tensors) -> None:
        """Gradients of all convolutions into `gradients` (views of shape (units, ...)) from those of the features."""
        units, n = dh.shape[:2]
        last, width = self.lengths[-1], self.widths[-1]
        d = dh.view(units, n, self.bins, width)
        if last % self.bins == 0:
            each = last // self.bins
            d = (d / each).unsqueeze(3).expand(units, n, self.bins, each, width)
        else:
            d = torch.matmul(self._pool(d).T, d)
        d = d.reshape(units, n * last, width)
        for i in reversed(range(len(self.widths))):
            columns, y = saved[i]
            d = torch.ops.aten.threshold_backward(d, y, 0.0)  # (units, N * length, out)
            gradients[f"{i}.weight"].copy_(torch.bmm(columns.transpose(1, 2), d))
            gradients[f"{i}.bias"].copy_(d.sum(1))
            if i:
                d = self._uncolumns(torch.bmm(d, weights[f"{i}.weight"].transpose(1, 2)), n, i)

    def _columns(self, x: Tensor, length: int) -> Tensor:
        """im2col: in channels-last order the receptive field of a position is one contiguous stretch."""
        units, n, padded, inside = x.shape
        size, stride = (units * n, length, self.kernel * inside), (padded * inside, self.stride * inside, 1)
        return x.as_strided(size, stride).reshape(units, n * length, self.kernel * inside)

    def _uncolumns(self, columns: Tensor, n: int, layer: int) -> Tensor:
        """A layer's columns summed onto its input: (units, N * length, kernel * in) -> (units, N * before, in)."""
        units, inside, length = len(columns), self.widths[layer - 1], self.lengths[layer + 1]
        before, step = self.lengths[layer], self.stride * inside
        reach = -(-self.kernel // self.stride)  # groups of `stride` taps; each is one addition over shifted rows
        rows = max(length + reach - 1, -(-(before + 2 * self.pad) // self.stride))
        columns = columns.view(units * n, length, self.kernel * inside)
        total = columns.new_zeros(units * n, rows, step)
        for g in range(reach):
            part = columns[:, :, g * step : (g + 1) * step]
            total[:, g : g + length, : part.shape[2]] += part
        inner = total.view(units * n, rows * self.stride, inside)[:, self.pad : self.pad + before]
        return inner.reshape(units, n * before, inside)

    def _pool(self, like: Tensor) -> Tensor:
        """The adaptive average pool as a matrix (bins, length), for lengths that the bins do not divide."""
        length = self.lengths[-1]
        matrix = like.new_zeros(self.bins, length)
        for b in range(self.bins):
            start, end = b * length // self.bins, -(-(b + 1) * length // self.bins)
            matrix[b, start:end] = 1.0 / (end - start)
        return matrix
