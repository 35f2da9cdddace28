"""A model for every modality: what Harmony and MFedMC have in common.

The model of modality m is its encoder, its column of the fusion layer and a head of its own: a copy of the shared block
{b, head} (in lora {B, b, head}) that m's owners alone train and average. The product's model has one shared block, so
these methods exist in the simulator alone, which asks for `tasks` and tells what was `trained`; every task is the local
rule on one modality, the same that a device's trainer runs where only that modality is present.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from coordinator.aggregation import Contribution, Folded, Weighting, fold
from coordinator.serving import Serving
from coordinator.strategies.base import Plan, Settings, Strategy
from coordinator.work import Budget, Member, work
from models.cost import block_costs
from models.local import Local
from models.partition import Vector, partition
from models.spec import SHARED, ModelSpec


@dataclass(frozen=True)
class Task:
    """One training within a device's round.

    owned   modalities that take part; steps, base, masks   as in the simulator's Job
    bytes   of what is sent of it, and fetched for it when it has changed
    """

    owned: tuple[str, ...]
    steps: Mapping[str, int]
    base: Mapping[str, Vector]
    bytes: int
    masks: Mapping[str, Vector] = field(default_factory=dict)


class Unimodal(Strategy):
    """Every modality's model is trained by its owners, each for full epochs, and averaged over them by n_i."""

    absent = "not computed: every modality has a model of its own, trained by its owners alone"
    weighting = Weighting.SAMPLES
    simulator_only = True
    selective: ClassVar[bool] = False  # whether devices wait to be told what to upload (`choose`)

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.cut = partition(spec)
        self.costs = block_costs(spec)
        self.heads: dict[str, Vector] = {}  # modality -> its own head, laid out like the shared block
        self.start: dict[str, Vector] = {}  # the blocks before the first round
        self._head_deltas: dict[tuple[str, str], Vector] = {}

    def local(self) -> Local:
        return replace(self.settings.local, zero_fill=False, dropout=0.0)

    def begin(self, blocks: Mapping[str, Vector]) -> None:
        """Told the blocks before every round; all heads begin as the shared block does."""
        if not self.start:
            self.start = dict(blocks)
            self.heads = {m: blocks[SHARED].copy() for m in self.spec.names}

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        """Everything owned, each modality for all epochs."""
        return {m.id: self.alone(m) for m in members if m.owned}

    def alone(self, member: Member) -> Plan:
        """The plan of a device that trains its modalities' models one after the other."""
        steps, rule, seconds, joules = self.cap(member), self.local(), member.overhead, 0.0
        for m in member.owned:
            one = work(self.spec, replace(member, owned=(m,), overhead=0.0), rule.batch, cached=rule.cache)
            seconds += one.seconds({m: steps, SHARED: steps})
            joules += one.joules({m: steps, SHARED: steps})
        return Plan(dict.fromkeys(member.owned, steps), Budget(), rule, seconds, joules)

    def full_seconds(self, member: Member) -> float:
        return self.alone(member).seconds

    def tasks(self, device: str, steps: Mapping[str, int], blocks: Mapping[str, Vector]) -> dict[str, Task]:
        """What the device trains in this round, by name: a modality's own model by the modality's."""
        return {
            m: Task(
                (m,),
                {m: count, SHARED: count},
                {m: blocks[m], SHARED: self.heads[m]},
                self.costs[m].bytes + self.costs[SHARED].bytes,
            )
            for m, count in steps.items()
            if m != SHARED
        }

    def worth(self, probabilities: Mapping[str, Vector], y: Vector) -> dict[str, float]:
        """What each modality is worth to a device (selective methods): m -> (n, classes) of its own windows, y (n,)."""
        raise TypeError(f"{type(self).__name__} does not say what a modality is worth")

    def choose(self, round: int, seen: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, tuple[str, ...]]:
        """What each device uploads (selective methods), from device -> modality -> (loss, worth)."""
        raise TypeError(f"{type(self).__name__} does not say what is uploaded")

    def trained(self, device: str, task: str, deltas: Mapping[str, Vector]) -> None:
        """What a task of the device came to; a head's change is kept until its modality is folded."""
        self._head_deltas[device, task] = deltas[SHARED]

    def fold(self, block: str, size: int, contributions: Iterable[Contribution], total_samples: int) -> Folded | None:
        """The modality's block and, from the same devices with the same weights, its head."""
        sent = list(contributions)
        folded = fold(size, sent, self.weighting)
        if folded is not None and block in self.heads:
            of_head = [replace(one, delta=self._head_deltas[one.device, block]) for one in sent]
            head = fold(self.heads[block].size, of_head, self.weighting)
            assert head is not None
            self.heads[block] = (self.heads[block] + head.delta).astype(self.heads[block].dtype)
        return folded

    def serving(self, blocks: Mapping[str, Vector]) -> Serving:
        """Late fusion of the modalities' own models."""
        return Serving({m: {m: blocks[m], SHARED: head} for m, head in self.heads.items()})

    def encoder(self, block: str) -> Vector:
        """1 for the block's values that belong to its encoder, 0 for those of fusion layer and head."""
        mask = np.zeros(self.cut.size(block), np.float32)
        for name, view in self.cut.views(block, mask).items():
            view[...] = float(name.startswith("encoders."))
        return mask
