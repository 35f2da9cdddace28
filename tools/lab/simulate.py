"""A run in virtual time: the coordinator's own round core, strategies and folding, over devices that train at once.

Every number on the clock is simulated: seconds and joules come from the cost model, not from this machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from coordinator.commit import fold_round
from coordinator.divergence import worth
from coordinator.events import (
    Action,
    Declined,
    Event,
    Fold,
    Folded,
    Send,
    StatusArrived,
    Store,
    Stored,
    UpdateArrived,
    UpdateHead,
)
from coordinator.registry import Registry
from coordinator.rounds import Pace, Rounds
from coordinator.strategies.base import Strategy
from coordinator.strategies.oracle import Oracle
from coordinator.strategies.submodels import SubModels
from coordinator.work import Member
from device_runtime.wire import EXACT, Wire
from models.cost import block_costs
from models.local import Local
from models.partition import Vector
from models.spec import ModelSpec
from protocol.messages import PROTOCOL, Assignment, BlockSpeed, Status
from tools.lab.clock import Spent, spent
from tools.lab.engine import Engine, Job, Work
from tools.lab.regret import Regret, regret, truth
from tools.lab.world import LabDevice, World

Blocks = dict[str, Vector]

NOT_FINITE = "training gave values that are not finite"


@dataclass(frozen=True)
class Point:
    """The fleet after `round` rounds: simulated seconds, joules (above idle, and with idle), bytes, scores."""

    round: int
    seconds: float
    joules: float
    joules_idle: float
    bytes_up: int
    bytes_down: int
    loss: float
    steps: float  # mean local steps of the last round's devices
    scores: dict[str, float]


@dataclass
class Clock:
    """Running totals of a run."""

    seconds: float = 0.0
    joules: float = 0.0
    idle: float = 0.0
    up: int = 0
    down: int = 0


@dataclass
class Run:
    """One method on one world. `judge` scores the blocks at every `every`-th round and at the last one.

    blocks, frozen   where training starts; frozen is the base of lora
    watch            called with every new point; True ends the run there
    compare          keep in `regrets`, round by round, what the method would have gained by knowing (tools.lab.regret)
    """

    world: World
    strategy: Strategy
    engine: Engine
    blocks: Blocks
    frozen: Blocks
    rounds: int
    judge: str = "test"
    every: int = 1
    watch: Callable[[Point], bool] = lambda point: False
    compare: bool = False
    points: list[Point] = field(default_factory=list)
    regrets: list[Regret] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec: ModelSpec = self.world.spec
        self.costs = block_costs(self.spec)
        self.devices = {d.id: d for d in self.world.devices}
        self.clock = Clock()
        pace = Pace(len(self.devices), gather=float("inf"), patience=1e9, margin=0.0, rounds=self.rounds)
        self.core = Rounds(self.spec, self.strategy, pace)
        self.held: dict[str, dict[str, int]] = {d: {} for d in self.devices}  # device -> block -> version it has
        self.settled: set[str] = set()  # devices whose features of frozen encoders are computed
        self.works: dict[str, Work] = {}
        self.wires: dict[str, Wire] = {}
        self._queue: list[tuple[float, int, Event]] = []
        self._order = count()
        self._members: list[Member] = []  # the fleet as strategies see it, and what its blocks are worth in truth
        self._worth: dict[str, float] = {}

    def go(self) -> list[Point]:
        """Run to the end; the points of the evaluated rounds."""
        self._look(1)
        for device in self.world.devices:
            self._push(0.0, StatusArrived(device.id, birth(self.spec, device)))
        while self._queue:
            now, _, event = heapq.heappop(self._queue)
            self._carry_out(self.core.handle(event, now), now)
        return self.points

    def _push(self, at: float, event: Event) -> None:
        heapq.heappush(self._queue, (at, next(self._order), event))

    def _carry_out(self, actions: list[Action], now: float) -> None:
        sent = {}
        for action in actions:
            if isinstance(action, Send):
                sent[action.device] = action.assignment
            elif isinstance(action, Store):
                self._push(now, Stored((action.head.id,)))
            elif isinstance(action, Fold):
                self._fold(action, now)
        if sent:
            self._compare({d: a.steps for d, a in sent.items()}, now)
            self._train(sent, now)

    # -- the devices' side -------------------------------------------------------------------------

    def _train(self, sent: Mapping[str, Assignment], now: float) -> None:
        """All devices of the round at once; each answers when its simulated clock says so."""
        jobs = [self.job(self.devices[d], assignment) for d, assignment in sent.items()]
        self.works = {}
        longest = 0.0
        for job, work in zip(jobs, self.engine.train(jobs), strict=True):
            device, assignment = self.devices[job.device], sent[job.device]
            cost = self._cost(device, assignment, work, job.local)
            longest = max(longest, cost.seconds)
            self.clock.joules += cost.joules
            self.clock.up += cost.bytes_up
            self.clock.down += cost.bytes_down
            if not work.finite:
                self._push(now + cost.seconds, Declined(device.id, assignment.id, NOT_FINITE))
                continue
            if job.local.wire not in EXACT:
                work = replace(work, deltas=self._rounded(device.id, assignment.id, work.deltas, job.local.wire))
            self.works[device.id] = work
            if isinstance(self.strategy, SubModels):
                self.strategy.trained(device.id, job.base, work.deltas)
            head = UpdateHead(
                id=f"{device.id}.{assignment.id}",
                device=device.id,
                boot="lab",
                round=assignment.round,
                epoch=assignment.epoch,
                assignment=assignment.id,
                blocks={b: (assignment.versions[b], steps) for b, steps in work.steps.items()},
                samples=len(device.windows),
                loss=work.loss,
                entropy=work.entropy,
                seconds=cost.seconds,
                joules=cost.joules,
                power_source="simulated",
                size=cost.bytes_up,
            )
            self._push(now + cost.seconds, UpdateArrived(head))
        self.clock.idle += longest * sum(d.idle_watts for d in self.world.devices)

    def _rounded(self, device: str, update: str, deltas: Blocks, dtype: str) -> Blocks:
        """Deltas as they arrive after travelling in fewer bits; what was lost is added to the device's next ones."""
        wire = self.wires.setdefault(device, Wire())
        tensors = wire.encode(update, deltas, dtype)
        wire.settle(update, True)
        return {block: tensor.array() for block, tensor in tensors.items()}

    def job(self, device: LabDevice, assignment: Assignment) -> Job:
        """The assignment as the engine takes it."""
        local = Local.from_dict(assignment.training)
        base, masks = self.blocks, {}
        if isinstance(self.strategy, SubModels):
            base, masks = dict(self.strategy.base(device.id, base)), dict(self.strategy.parts[device.id].masks)
        return Job(device.id, assignment.round, device.windows, device.owned, assignment.steps, base, local, masks)

    def _cost(self, device: LabDevice, assignment: Assignment, work: Work, local: Local) -> Spent:
        held = self.held[device.id]
        fetched = [b for b, version in assignment.versions.items() if held.get(b) != version]
        held.update(assignment.versions)
        part = self.strategy.parts[device.id] if isinstance(self.strategy, SubModels) else None
        cost = spent(
            self.spec,
            self.costs,
            device,
            work,
            local,
            fetched,
            resident=local.cache and device.id in self.settled,
            compute_part=part.compute if part else 1.0,
            sent_part=part.sent if part else 1.0,
        )
        self.settled.add(device.id)
        return cost if work.finite else replace(cost, up=0.0, bytes_up=0)

    # -- what nobody can know ----------------------------------------------------------------------

    def _look(self, round: int) -> None:
        """See every cohort's true divergence before the round, for an oracle or for comparison."""
        if round > self.rounds or not (self.compare or isinstance(self.strategy, Oracle)):
            return
        if not self._members:
            registry = Registry(self.spec)
            for device in self.world.devices:
                registry.arrive(device.id, birth(self.spec, device), 0.0)
            self._members = [registry.member(device) for device in registry.ready()]
        pairs = [(m, self.devices[m.id]) for m in self._members]
        seen = truth(self.engine, self.strategy, round, self.blocks, pairs)
        self._worth = worth(self.spec.names, seen)
        if isinstance(self.strategy, Oracle):
            self.strategy.reveal(seen)

    def _compare(self, assigned: Mapping[str, Mapping[str, int]], now: float) -> None:
        if self.compare:
            chosen, best = regret(self.strategy, self._members, assigned, self._worth)
            self.regrets.append(Regret(self.core.round, now, chosen, best))

    # -- the coordinator's side --------------------------------------------------------------------

    def _fold(self, action: Fold, now: float) -> None:
        self.clock.seconds = now
        heads = [self.core.stored[id.rsplit(".", 2)[0]] for id in action.updates]
        done = fold_round(
            self.strategy,
            self.blocks,
            self.core.versions,
            heads,
            lambda head, block: self.works[head.device].deltas[block],
        )
        self.blocks = {**self.blocks, **done.blocks}
        ended = False
        if action.round % self.every == 0 or action.round == self.rounds:
            point = self._point(action.round, heads)
            self.points.append(point)
            ended = self.watch(point)
        if not ended:
            self._look(action.round + 1)
            self._push(now, Folded(action.round, done.versions, done.seen))

    def _steps(self, head: UpdateHead) -> int:
        """Local steps of the device in its last round."""
        return max((steps for _, steps in head.blocks.values()), default=0)

    def _point(self, round: int, heads: list[UpdateHead]) -> Point:
        zero_fill = self.strategy.local().zero_fill
        serving = self.strategy.serving(self.blocks)
        scores = self.world.judges[self.judge](self.blocks, self.frozen, {}, zero_fill=zero_fill, serving=serving)
        clock, n = self.clock, max(len(heads), 1)
        return Point(
            round,
            clock.seconds,
            clock.joules,
            clock.joules + clock.idle,
            clock.up,
            clock.down,
            sum(h.loss for h in heads) / n,
            sum(map(self._steps, heads)) / n,
            scores,
        )


def birth(spec: ModelSpec, device: LabDevice) -> Status:
    """What the device would say at birth: its speed per block as if it had measured it."""
    costs = block_costs(spec)
    speed = {
        block: BlockSpeed(forward=cost.forward / device.flops, backward=cost.backward / device.flops)
        for block, cost in costs.items()
    }
    return Status(
        online=True,
        protocol=PROTOCOL,
        boot="lab",
        tier=device.tier,
        modalities={m: spec.input(m).channels for m in device.owned},
        windows=len(device.windows),
        can_train=True,
        speed=speed,
        watts=device.watts,
        idle_watts=device.idle_watts,
        power_source="simulated",
        rate=device.rate,
    )
