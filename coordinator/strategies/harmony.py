"""Harmony: Heterogeneous Multi-Modal Federated Learning through Disentangled Model Training.

Ouyang, Xie, Fu, Cheng, Pan, Ling, Xing, Zhou, Huang, MobiSys 2023, doi 10.1145/3581791.3596844.

Stage 1, modality-wise: every owner trains a model of each of its modalities alone (encoder and own head), averaged over
the modality's owners. Stage 2, fusion: devices with several modalities train a fusion network on top of the encoders,
averaged with equal weights within clusters of devices whose encoders are biased alike (k-means over the distances, each
modality's divided by its largest). Devices with one modality are done after stage 1 and keep that modality's model.

Here, unlike there: the fusion network is the product's fusion layer and head, begun anew and made for the devices that
own the same modalities (theirs concatenates a fixed set of features). Encoders rest in stage 2 instead of being
fine-tuned on the device, so a device's bias is measured where it trains them: how far stage 1's last round moved its
encoder. Clusters are drawn once, by k-means from the two devices farthest apart, in groups of four or more. Until
stage 2 several modalities answer by the mean of their class probabilities. Dividing a device's time among its
modalities by progress (balance-aware resource allocation) is left out: all train for the same epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from coordinator.aggregation import Contribution, Folded
from coordinator.serving import Serving
from coordinator.strategies.base import Plan, Settings
from coordinator.strategies.unimodal import Task, Unimodal
from coordinator.work import Budget, Member
from models.cost import BYTES_PER_VALUE
from models.partition import Vector
from models.spec import SHARED, Mode, ModelSpec

JOINT = "joint"  # the task of stage 2
Group = tuple[tuple[str, ...], int]  # modalities and cluster


class Harmony(Unimodal):
    """Modalities apart for `stage1` rounds, then fusion among those who own several."""

    name = "harmony"
    source = "doi 10.1145/3581791.3596844"
    stage1: ClassVar[int] = 40
    least: ClassVar[int] = 4  # devices of a group that is worth two clusters

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        super().__init__(spec, settings)
        self.bias: dict[str, dict[str, float]] = {}  # device -> modality -> how far its encoder was moved
        self.groups: dict[str, Group] = {}  # device -> its group in stage 2
        self.fusion: dict[Group, dict[str, Vector]] = {}
        self.fusing = False

    def plan(self, round: int, members: Sequence[Member]) -> dict[str, Plan]:
        self.fusing = round > self.stage1
        several = [m for m in members if len(m.owned) > 1]
        if not self.fusing or not several:
            self.fusing = False
            return super().plan(round, members)
        for member in several:
            self.groups.setdefault(member.id, (member.owned, 0))
        if not self.fusion:
            self._cluster()
        return {m.id: self._fuse(m) for m in several}

    def _fuse(self, member: Member) -> Plan:
        """Fusion layer and head on features that are computed once a round."""
        steps, w, batch = self.cap(member), self.work(member), self.local().batch
        speed = member.speed
        back = [speed[m].fuse if self.spec.mode is Mode.FULL else speed[m].backward for m in member.owned]
        busy = steps * (w.step + batch * sum(back)) + sum(w.still.values())
        sent = sum(self._bytes(b) for b in (*member.owned, SHARED)) / member.rate if member.rate else 0.0
        counts = dict.fromkeys((*member.owned, SHARED), steps)
        return Plan(counts, Budget(), self.local(), w.fixed + busy + sent, w.watts * busy)

    def _bytes(self, block: str) -> int:
        """Of a block's part in the fusion network."""
        return int((1 - self.encoder(block)).sum()) * BYTES_PER_VALUE

    def _cluster(self) -> None:
        """Split every group of devices that own the same into two clusters, if it is large enough."""
        for owned in {group[0] for group in self.groups.values()}:
            devices = sorted(d for d, group in self.groups.items() if group[0] == owned)
            found = np.array([[self.bias.get(d, {}).get(m, 0.0) for m in owned] for d in devices])
            labels = two_clusters(found) if len(devices) >= self.least else [0] * len(devices)
            self.groups.update({d: (owned, label) for d, label in zip(devices, labels, strict=True)})

    def tasks(self, device: str, steps: Mapping[str, int], blocks: Mapping[str, Vector]) -> dict[str, Task]:
        if not self.fusing:
            return super().tasks(device, steps, blocks)
        group = self.groups[device]
        if group not in self.fusion:
            self.fusion[group] = {b: self._fresh(b, blocks) for b in (*group[0], SHARED)}
        masks = {m: 1 - self.encoder(m) for m in group[0]}
        return {JOINT: Task(group[0], steps, self.fusion[group], sum(map(self._bytes, steps)), masks)}

    def _fresh(self, block: str, blocks: Mapping[str, Vector]) -> Vector:
        """The encoder as stage 1 left it, fusion layer and head as they were at the start."""
        vector: Vector = np.where(self.encoder(block) > 0, blocks[block], self.start[block])
        return vector

    def trained(self, device: str, task: str, deltas: Mapping[str, Vector]) -> None:
        if task != JOINT:
            super().trained(device, task, deltas)
            mask = self.encoder(task)  # in lora encoders rest, so A_m's own movement stands for them
            moved = deltas[task] * (mask if mask.any() else 1.0)
            self.bias.setdefault(device, {})[task] = float(np.linalg.norm(moved))

    def fold(self, block: str, size: int, contributions: Iterable[Contribution], total_samples: int) -> Folded | None:
        """Stage 2 moves the clusters' fusion networks; the common blocks stay as stage 1 left them."""
        if not self.fusing:
            return super().fold(block, size, contributions, total_samples)
        sums: dict[Group, tuple[int, npt.NDArray[np.float64]]] = {}
        for one in contributions:
            group = self.groups[one.device]
            count, total = sums.get(group, (0, np.zeros(size)))
            sums[group] = count + 1, total + one.delta
        for group, (count, total) in sums.items():
            base = self.fusion[group][block]
            self.fusion[group][block] = (base + total / count).astype(base.dtype)
        return None

    def serving(self, blocks: Mapping[str, Vector]) -> Serving:
        """A fusion network for each set of modalities that devices own, every cluster by its share of them."""
        alone = super().serving(blocks).alone
        joint: dict[tuple[str, ...], list[tuple[float, dict[str, Vector]]]] = {}
        members = list(self.groups.values())
        for group, weights in self.fusion.items():
            share = members.count(group) / sum(other[0] == group[0] for other in members)
            joint.setdefault(group[0], []).append((share, weights))
        return Serving(alone, joint)


def two_clusters(points: npt.NDArray[np.float64]) -> list[int]:
    """Lloyd's k-means with k = 2 over the rows, columns divided by their largest; the first row is in cluster 0."""
    top = points.max(axis=0)
    scaled = points / np.where(top > 0, top, 1.0)
    apart = ((scaled[:, None] - scaled[None]) ** 2).sum(2)
    centers = scaled[list(np.unravel_index(int(apart.argmax()), apart.shape))]
    labels = np.zeros(len(points), int)
    for _ in range(100):
        found = ((scaled[:, None] - centers[None]) ** 2).sum(2).argmin(1)
        centers = np.stack([scaled[found == k].mean(0) if (found == k).any() else centers[k] for k in (0, 1)])
        if (found == labels).all():
            break
        labels = found
    return [int(label != labels[0]) for label in labels]
