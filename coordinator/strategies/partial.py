"""Partial training under a common round time: TimelyFL and FedEL, by depth from the output towards the input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from coordinator.aggregation import Divergence
from coordinator.allocation import most_steps
from coordinator.strategies.base import Plan, Settings
from coordinator.strategies.submodels import Part, SubModels, speed_of
from coordinator.work import Member
from models.cost import block_costs
from models.partition import Vector
from models.spec import SHARED, Mode, ModelSpec, conv_lengths


class _ByDepth(SubModels):
    """Layers from input (0) to output; the same ones in every modality. Frozen layers are run but not trained."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.depths = (len(spec.widths) if spec.mode is Mode.FULL else 0) + 2  # convolutions, fusion, head
        self._masks = [self._layer(depth) for depth in range(self.depths)]
        self._flops = self._layer_flops()

    def depth(self, tensor: str) -> int:
        """Which layer a tensor belongs to."""
        if tensor.startswith("head."):
            return self.depths - 1
        if tensor.startswith("encoders.") and self.spec.mode is Mode.FULL:
            return int(tensor.split(".")[2])
        return self.depths - 2

    def _layer(self, depth: int) -> dict[str, Vector]:
        masks = {}
        for block in self.cut_.blocks:
            mask = np.zeros(self.cut_.size(block), np.float32)
            for name, view in self.cut_.views(block, mask).items():
                view[...] = float(self.depth(name) == depth)
            masks[block] = mask
        return masks

    def _layer_flops(self) -> list[float]:
        """Forward FLOPs of every layer, all modalities together."""
        flops, costs = [0.0] * self.depths, block_costs(self.spec)
        for i in self.spec.inputs:
            inside = i.channels
            if self.spec.mode is Mode.FULL:
                for n, (width, length) in enumerate(
                    zip(self.spec.widths, conv_lengths(self.spec, i.samples)[1:], strict=True)
                ):
                    flops[n] += 2.0 * width * inside * self.spec.kernel * length
                    inside = width
            flops[-2] += costs[i.name].fuse
        flops[-1] = costs[SHARED].fuse
        return flops

    def compute(self, layers: Collection[int]) -> float:
        """Arithmetic when only these layers are trained, as a part of the full training's.

        The forward pass is whole; gradients run back to the first trained layer, weights' gradients only where trained.
        """

        def cost(trained: Collection[int]) -> float:
            first = min(trained)
            return (
                sum(self._flops)
                + sum(self._flops[n] for n in trained)
                + sum(self._flops[n] for n in range(first + 1, self.depths))
            )

        return cost(layers) / cost(range(self.depths))

    def of_layers(self, layers: Collection[int]) -> Part:
        """The part that consists of these layers."""
        masks = {
            b: sum((self._masks[n][b] for n in layers), np.zeros(self.cut_.size(b), np.float32))
            for b in self.cut_.blocks
        }
        sent = sum(m.sum() for m in masks.values()) / sum(m.size for m in masks.values())
        return Part(masks, False, self.compute(layers), float(sent))


class TimelyFL(_ByDepth):
    """Each device trains the layers next to the output that fit the round's time, and fewer steps where none do."""

    name = "timelyfl"
    source = "arXiv 2304.06947"

    def part(self, round: int, member: Member, fastest: float) -> Part:
        speed = speed_of(self, member, self.interval)
        for first in range(self.depths):
            layers = range(first, self.depths)
            if self.compute(layers) <= speed or first == self.depths - 1:
                return self.of_layers(layers)
        raise AssertionError("a network has at least a head")

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        """The round's time comes from the settings' deadline; without one it is the median device's full round."""
        wanted = self.deadline(members)
        full = [self.full_seconds(m) for m in members] or [0.0]
        self.interval = wanted if np.isfinite(wanted) else float(np.median(full))
        plans = super().plan(round, members)
        for member in members:
            w, part, plan = self.work(member), self.parts[member.id], plans[member.id]
            room = self.interval / max(part.compute, 1e-9)
            steps = max(1, most_steps(w, w.blocks, self.budget(room), max(plan.steps.values())))
            plans[member.id] = replace(plan, steps=dict.fromkeys(plan.steps, steps))
        return plans


class FedEL(_ByDepth):
    """A window of layers that fits the fastest device's time slides from the output to the input and starts again.

    Inside it the most important layers are trained: those whose weights moved the loss most (|update|^2 per FLOP, from
    the global updates; ElasticTrainer, MobiSys 2023, measures -<g, dw> on the device). FedEL's early exit at the
    window's end is left out: the network here has one head.
    """

    name = "fedel"
    source = "arXiv 2509.16902"

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self._window: dict[str, int] = {}  # device -> its window's first layer
        self._importance = np.ones(self.depths)

    def part(self, round: int, member: Member, fastest: float) -> Part:
        speed = speed_of(self, member, fastest)
        if self.compute(range(self.depths)) <= speed:
            return self.of_layers(range(self.depths))
        first = self._window.get(member.id, self.depths) - 1
        self._window[member.id] = first = first if first >= 0 else self.depths - 1
        chosen = {first}
        for n in sorted(range(first, self.depths), key=lambda n: -self._importance[n] / max(self._flops[n], 1.0)):
            if self.compute(chosen | {n}) <= speed:
                chosen.add(n)
        return self.of_layers(sorted(chosen))

    def observe(self, round: int, seen: Mapping[str, tuple[Divergence, float]]) -> None:
        """Blocks' mean updates stand for their layers': the modalities' for all but the head, the shared one for it."""
        moved = [d.norm**2 for b, (d, _) in seen.items() if b != SHARED]
        if moved and SHARED in seen:
            self._importance = np.array([float(np.mean(moved))] * (self.depths - 1) + [seen[SHARED][0].norm ** 2])

    def state(self) -> dict[str, Any]:
        return {**super().state(), "window": dict(self._window), "importance": self._importance.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._window = dict(state["window"])
        self._importance = np.array(state["importance"])
