"""A run without rounds (FedBuff): devices come and go on the simulated clock, a buffer of updates makes a step."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from coordinator.events import UpdateHead
from coordinator.registry import Registry
from coordinator.strategies.fedbuff import FedBuff
from protocol.messages import Assignment
from tools.lab.engine import Work
from tools.lab.simulate import Point, Run, birth
from tools.lab.world import LabDevice


@dataclass(frozen=True)
class _Arrival:
    head: UpdateHead
    work: Work
    began: int  # the server's step at which the device fetched the model


class BufferedRun(Run):
    """As Run, for a FedBuff strategy: a round is a full buffer, and nobody waits for anybody."""

    def go(self) -> list[Point]:
        assert isinstance(self.strategy, FedBuff)
        self.registry = Registry(self.spec)
        self._coming: list[tuple[float, int, _Arrival]] = []
        self._times: Counter[str] = Counter()
        self.step, buffer, ended = 0, list[_Arrival](), False
        lost = set[str]()  # devices whose training ran away since the server's last step
        for device in self.world.devices:
            self.registry.arrive(device.id, birth(self.spec, device), 0.0)
            self._begin(device, 0.0)
        idle = sum(d.idle_watts for d in self.world.devices)
        while self.step < self.rounds and not ended:
            now, _, arrival = heapq.heappop(self._coming)
            self.clock.idle += idle * (now - self.clock.seconds)
            self.clock.seconds = now
            if arrival.work.finite:
                buffer.append(arrival)
            else:
                lost.add(arrival.head.device)
            if len(lost) == len(self.devices):
                break  # nobody can train from this model
            if len(buffer) == self.strategy.buffer:
                self._step(buffer)
                lost.clear()
                if self.step % self.every == 0 or self.step == self.rounds:
                    self.points.append(self._point(self.step, [a.head for a in buffer]))
                    ended = self.watch(self.points[-1])
                buffer = []
            self._begin(self.devices[arrival.head.device], now)
        return self.points

    def _begin(self, device: LabDevice, now: float) -> None:
        """The device fetches the model as it is and trains; its update is there when its clock says so."""
        plan = self.strategy.plan(self.step + 1, [self.registry.member(device.id)])[device.id]
        self._times[device.id] += 1
        assignment = Assignment(
            id=f"{self._times[device.id]}",
            round=self._times[device.id],
            epoch=1,
            steps=plan.steps,
            versions=dict.fromkeys(self.blocks, self.step),
            deadline=0.0,
            training=plan.local.to_dict(),
        )
        job = self.job(device, assignment)
        work = self.engine.train([job])[0]
        cost = self._cost(device, assignment, work, job.local)
        self.clock.joules += cost.joules
        self.clock.up += cost.bytes_up
        self.clock.down += cost.bytes_down
        head = UpdateHead(
            id=f"{device.id}.{assignment.id}",
            device=device.id,
            boot="lab",
            round=assignment.round,
            epoch=1,
            assignment=assignment.id,
            blocks={b: (self.step, steps) for b, steps in work.steps.items()},
            samples=len(device.windows),
            loss=work.loss,
        )
        arrival = _Arrival(head, work, self.step)
        heapq.heappush(self._coming, (now + cost.seconds, next(self._order), arrival))

    def _step(self, buffer: list[_Arrival]) -> None:
        assert isinstance(self.strategy, FedBuff)
        changed = {}
        for block, base in self.blocks.items():
            mine = [a for a in buffer if block in a.work.deltas]
            if mine:
                stale = [self.step - a.began for a in mine]
                changed[block] = self.strategy.step(base, [a.work.deltas[block] for a in mine], stale)
        self.blocks = {**self.blocks, **changed}
        self.step += 1
