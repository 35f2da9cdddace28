"""A run in which a device trains several models in a round, one after the other (Harmony, MFedMC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from coordinator.events import Declined, UpdateArrived, UpdateHead
from coordinator.strategies.unimodal import Task, Unimodal
from device_runtime.wire import EXACT
from models.cost import BYTES_PER_VALUE
from models.local import Local
from models.network import Network
from models.partition import Vector
from models.spec import SHARED, Mode
from protocol.messages import Assignment
from tools.lab.clock import WIRE, Spent, work_flops
from tools.lab.engine import Job, Work
from tools.lab.simulate import NOT_FINITE, Run
from tools.lab.world import LabDevice


@dataclass(frozen=True)
class _Result:
    """A device's round: its tasks and what each came to, by name."""

    device: LabDevice
    assignment: Assignment
    local: Local
    tasks: dict[str, Task]
    works: dict[str, Work]

    @property
    def finite(self) -> bool:
        return all(work.finite for work in self.works.values())


class UnimodalRun(Run):
    """As Run, for a Unimodal strategy."""

    def _train(self, sent: Mapping[str, Assignment], now: float) -> None:
        strategy = self.strategy
        assert isinstance(strategy, Unimodal)
        strategy.begin(self.blocks)
        results = self._results(strategy, sent)
        good = [r for r in results if r.finite]
        chosen = {r.device.id: tuple(r.tasks) for r in good}
        if strategy.selective:
            round = next(iter(sent.values())).round
            chosen = strategy.choose(round, {r.device.id: self._seen(strategy, r) for r in good})
        costs = [self._spent(r, chosen.get(r.device.id, ()), strategy.selective) for r in results]
        told = max((c.seconds - c.up for c in costs), default=0.0)
        self.works, longest = {}, 0.0
        for r, cost in zip(results, costs, strict=True):
            seconds = told + cost.up if strategy.selective and chosen.get(r.device.id) else cost.seconds
            longest = max(longest, seconds)
            self.clock.joules += cost.joules
            self.clock.up += cost.bytes_up
            self.clock.down += cost.bytes_down
            if not r.finite:
                self._push(now + seconds, Declined(r.device.id, r.assignment.id, NOT_FINITE))
                continue
            work = self.works[r.device.id] = self._sent(strategy, r, chosen[r.device.id])
            self._push(now + seconds, UpdateArrived(self._head(r, work, replace(cost, latency=0.0), seconds)))
        self.clock.idle += longest * sum(d.idle_watts for d in self.world.devices)

    def _results(self, strategy: Unimodal, sent: Mapping[str, Assignment]) -> list[_Result]:
        """All devices' tasks, trained at once."""
        found = []
        for id, assignment in sent.items():
            tasks = strategy.tasks(id, assignment.steps, self.blocks)
            local = Local.from_dict(assignment.training)
            found.append(_Result(self.devices[id], assignment, local, tasks, {}))
        jobs = [
            Job(
                r.device.id,
                r.assignment.round,
                r.device.windows,
                task.owned,
                task.steps,
                task.base,
                r.local,
                task.masks,
            )
            for r in found
            for task in r.tasks.values()
        ]
        works = iter(self.engine.train(jobs))
        for r in found:
            r.works.update({name: next(works) for name in r.tasks})
        return found

    def _seen(self, strategy: Unimodal, r: _Result) -> dict[str, tuple[float, float]]:
        """Loss and worth of each modality, as the device sees them after training."""
        probabilities = {}
        for m, task in r.tasks.items():
            for block in (m, SHARED):
                self.network.load(block, task.base[block] + r.works[m].deltas[block])
            x = torch.from_numpy(np.ascontiguousarray(self.world.train.x[m][r.device.windows]))
            with torch.no_grad():
                probabilities[m] = self.network({m: x}).softmax(1).numpy().astype(np.float64)
        worth = strategy.worth(probabilities, self.world.train.y[r.device.windows])
        return {m: (r.works[m].loss, worth[m]) for m in r.tasks}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.network = Network(self.spec)
        for block, vector in self.frozen.items():
            self.network.load(block, vector, base=True)

    def _sent(self, strategy: Unimodal, r: _Result, chosen: tuple[str, ...]) -> Work:
        """What arrives of the device's round; the heads go to the strategy, which alone knows them."""
        flat = {(name, b): delta for name in chosen for b, delta in r.works[name].deltas.items()}
        if r.local.wire not in EXACT and flat:
            named = {f"{name}.{b}": delta for (name, b), delta in flat.items()}
            rounded = self._rounded(r.device.id, r.assignment.id, named, r.local.wire)
            flat = {(name, b): rounded[f"{name}.{b}"] for name, b in flat}
        deltas: dict[str, Vector] = {}
        steps: dict[str, int] = {}
        for name in chosen:
            mine = {b: delta for (of, b), delta in flat.items() if of == name}
            strategy.trained(r.device.id, name, mine)
            deltas.update({b: delta for b, delta in mine.items() if b in r.assignment.steps})
            steps.update({b: s for b, s in r.works[name].steps.items() if b in r.assignment.steps})
        loss = float(np.mean([work.loss for work in r.works.values()]))
        return Work(deltas, steps, loss, {})

    def _head(self, r: _Result, work: Work, cost: Spent, seconds: float) -> UpdateHead:
        return UpdateHead(
            id=f"{r.device.id}.{r.assignment.id}",
            device=r.device.id,
            boot="lab",
            round=r.assignment.round,
            epoch=r.assignment.epoch,
            assignment=r.assignment.id,
            blocks={b: (r.assignment.versions[b], steps) for b, steps in work.steps.items()},
            samples=len(r.device.windows),
            loss=work.loss,
            seconds=seconds,
            joules=cost.joules,
            power_source="simulated",
            size=cost.bytes_up,
        )

    def _steps(self, head: UpdateHead) -> int:
        """Of its longest task: devices that were not chosen trained all the same, and sent nothing."""
        return max(self.core.assignments[head.device].steps.values())

    # -- what it costs ---------------------------------------------------------------------------

    def _spent(self, r: _Result, chosen: tuple[str, ...], selective: bool) -> Spent:
        """The device's round: all tasks computed, the chosen ones uploaded, what has changed downloaded."""
        device, held = r.device, self.held[r.device.id]
        changed = {b for b, version in r.assignment.versions.items() if held.get(b) != version}
        held.update(r.assignment.versions)
        flops = sum(self._flops(r, name, selective) for name in r.tasks)
        self.settled.add(device.id)
        up = int(sum(r.tasks[name].bytes for name in chosen) * WIRE[r.local.wire] / BYTES_PER_VALUE)
        down = sum(self._down(task, changed) for task in r.tasks.values())
        return Spent.of(device, flops, up, down)

    def _down(self, task: Task, changed: set[str]) -> int:
        """A modality's own model as a whole, if it has changed; a fusion network always, its encoders if changed."""
        if not task.masks:
            return task.bytes if task.owned[0] in changed else 0
        still = sum(int((task.masks[m] == 0).sum()) for m in task.owned if m in changed) * BYTES_PER_VALUE
        return task.bytes + still

    def _flops(self, r: _Result, name: str, selective: bool) -> float:
        task, work, windows = r.tasks[name], r.works[name], len(r.device.windows)
        resident = r.local.cache and r.device.id in self.settled
        if task.masks:
            return self._fusion_flops(task, work, r.local, windows, resident)
        flops = work_flops(self.spec, self.costs, work, r.local, windows, resident=resident)
        if selective:  # one more look at all windows, for the Shapley values
            once = 0.0 if self._frozen_for_good else self.costs[name].encode
            flops += (once + self.costs[name].fuse + self.costs[SHARED].fuse) * windows
        return flops

    @property
    def _frozen_for_good(self) -> bool:
        return self.spec.mode is Mode.LORA and not self.spec.encoder_rank

    def _fusion_flops(self, task: Task, work: Work, local: Local, windows: int, resident: bool) -> float:
        """Features once a round (once for good where encoders are frozen), then fusion layer and head, both ways."""
        steps = max(work.steps.values(), default=0)
        flops = (self.costs[SHARED].fuse + self.costs[SHARED].backward) * steps * local.batch
        for m in task.owned:
            cost = self.costs[m]
            back = cost.backward if self._frozen_for_good else cost.fuse  # the encoder needs no gradient
            flops += (cost.fuse + back) * steps * local.batch
            if not (resident and self._frozen_for_good):
                flops += cost.encode * min(windows, steps * local.batch)
        return flops
