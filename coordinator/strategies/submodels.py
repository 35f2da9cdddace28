"""Methods with sub-models: devices hold parts of the model, every coordinate is averaged over those that hold it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coordinator.aggregation import Contribution, Folded, Weighting, fold
from coordinator.strategies.base import Plan, Settings, Strategy
from coordinator.strategies.fedavg import FedAvg
from coordinator.work import Member
from models.partition import Vector, partition
from models.spec import ModelSpec


@dataclass(frozen=True)
class Part:
    """A device's part of the model in a round.

    masks     block -> 0/1 per value: the coordinates that it trains
    narrow    the others are not there at all (their weights count as zero), rather than there and frozen
    compute   its arithmetic, as a part of the full model's; sent  its upload, likewise
    """

    masks: Mapping[str, Vector]
    narrow: bool
    compute: float
    sent: float


class SubModels(FedAvg):
    """Zero-filled FedAvg over parts of the model; subclasses say which part a device gets.

    Real devices train whole blocks only, so these methods exist in the simulator alone, which asks for `parts`, `base`
    and tells what was `trained`.
    """

    simulator_only = True

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.cut_ = partition(spec)
        self.parts: dict[str, Part] = {}

    def part(self, round: int, member: Member, fastest: float) -> Part:
        """The member's part in this round; `fastest` is the full round of the fastest device, in seconds."""
        raise TypeError(f"{type(self).__name__} does not say which part of the model a device gets")

    def base(self, device: str, blocks: Mapping[str, Vector]) -> Mapping[str, Vector]:
        """Where the device's training starts."""
        part = self.parts[device]
        return {b: v * part.masks[b] for b, v in blocks.items()} if part.narrow else blocks

    def trained(self, device: str, base: Mapping[str, Vector], deltas: Mapping[str, Vector]) -> None:
        """What the device came to, for methods in which it keeps something of its own."""

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        fastest = min((self.full_seconds(m) for m in members), default=0.0)
        self.parts = {m.id: self.part(round, m, fastest) for m in members}
        plans = super().plan(round, members)
        return {d: replace(plan, seconds=plan.seconds * self.parts[d].compute) for d, plan in plans.items()}

    def fold(self, block: str, size: int, contributions: Iterable[Contribution], total_samples: int) -> Folded | None:
        """Per coordinate the n_i weighted mean over the devices that hold it."""
        held = np.zeros(size)

        def counted() -> Iterator[Contribution]:
            for one in contributions:
                held[:] += one.samples * self.parts[one.device].masks[block]
                yield one

        folded = fold(size, counted(), Weighting.SAMPLES)
        if folded is None:
            return None
        mean = np.divide(folded.delta * folded.samples, held, out=np.zeros(size), where=held > 0)
        return replace(folded, delta=mean)


def speed_of(strategy: Strategy, member: Member, fastest: float) -> float:
    """The member's speed as a part of the fastest's, from the seconds of their full rounds per window."""
    return min(1.0, fastest / max(strategy.full_seconds(member), 1e-12))
