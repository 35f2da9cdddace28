"""The real coordinator, journal and checkpoints included, on virtual time: it can die at any deed and come back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator import service
from coordinator.defence import Defence
from coordinator.events import Open
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies.base import Strategy
from models.spec import ModelSpec
from protocol.faulty import FaultyTransport
from protocol.messages import CoordinatorState
from protocol.transport import Will
from tests.faults.clock import VirtualClock
from tests.faults.frailty import Crash, Disk, FrailJournal, FrailTransport, Fuse

if TYPE_CHECKING:
    from tests.faults.world import World


LEAST = 1e-6  # seconds: shorter waits get lost in the rounding of sums of floats


class VirtualTime:
    """What the service knows as the module `time`."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def time(self) -> float:
        return 1_800_000_000.0 + self._clock.now

    def monotonic(self) -> float:
        return self._clock.now


class VirtualCoordinator(Coordinator):
    """The service with its clock replaced; its loop is driven from outside, a step at a time."""

    clock: VirtualClock
    lead: float  # how far this process's clock is ahead

    def _now(self) -> float:
        return self.clock.now - self.born + self.lead

    born = 0.0

    @property
    def due(self) -> float:
        """Seconds until the loop would wake by itself."""
        return self._due() - self._now()


@dataclass
class CoordinatorParty:
    """All lives of the coordinator. `life` is the present one, None while it is down."""

    world: World
    folder: Path
    spec: ModelSpec
    strategy: Callable[[], Strategy]
    pace: Pace
    random: random.Random
    disk: Disk
    life: VirtualCoordinator | None = None
    lives: int = 0
    resumes: list[float] = field(default_factory=list)
    fuse: Fuse = field(default_factory=Fuse)
    links: tuple[FaultyTransport, ...] = ()
    _planned: float = inf

    def start(self) -> None:
        """Begin a life; one that dies while it resumes is followed by another."""
        if self.life is not None:
            return
        self.lives += 1
        self.fuse = Fuse()
        world = self.world
        service.time = VirtualTime(world.clock)  # type: ignore[assignment]
        names = ("coordinator", "coordinator-bulk")
        self.links = tuple(world.link(name, self.lives) for name in names)
        control, bulk = (FrailTransport(link, self.fuse, world.check.said) for link in self.links)
        try:
            life = VirtualCoordinator(
                fleet="sim",
                spec=self.spec,
                strategy=self.strategy(),
                pace=self.pace,
                folder=self.folder,
                control=control,
                bulk=bulk,
                defence=Defence(limits=world.limits),
            )
        except Crash:
            self.die()
            return
        life.clock, life.born, life.lead = world.clock, world.clock.now, 0.0
        life.boot = f"{self.random.getrandbits(64):016x}"
        checkpoint = life.ledger.checkpoint

        def frail_checkpoint(*given: Any, **more: Any) -> Any:
            self.fuse.deed()
            self.disk.check()
            return checkpoint(*given, **more)

        life.ledger.checkpoint = frail_checkpoint  # type: ignore[method-assign]
        frail = FrailJournal(life.ledger.journal, self.fuse, self.disk, lambda: world.check.durable(life, life.blocks))
        life.ledger.journal = frail  # type: ignore[assignment]
        self._watch(life)
        self.life = life
        if world.random_crash_while_resuming(self.random):
            self.fuse.light(self.random.randint(0, 12))
        self._guard(self._open)

    def _watch(self, life: VirtualCoordinator) -> None:
        """Have the check look at what a life resumes from and at what its core decides."""
        resume, handle, check = life.ledger.resume, life.core.handle, self.world.check

        def watched_resume(*given: Any) -> Any:
            at = resume(*given)
            check.resumed(life, at)
            return at

        def watched_handle(event: Any, now: float) -> Any:
            actions = handle(event, now)
            for action in actions:
                if isinstance(action, Open):
                    check.planned(life, action)
            return actions

        life.ledger.resume = watched_resume  # type: ignore[method-assign]
        life.core.handle = watched_handle  # type: ignore[method-assign]

    def _open(self) -> None:
        life = self.life
        assert life is not None
        life._resume()
        will = Will(life.topics.coordinator("state"), CoordinatorState(online=False, boot=life.boot).encode(), 1)
        for link, name, parting in zip(self.links, ("control", "bulk"), (will, None), strict=True):
            link.open(lambda event, name=name, life=life: self._heard(life, name, event), parting)
        self.poke(0.0)

    def _heard(self, life: VirtualCoordinator, name: str, event: object) -> None:
        life._inbox.put((name, event))
        if life is self.life:
            self.poke(self.random.uniform(0.0, 0.003))

    def poke(self, delay: float) -> None:
        """Let the loop turn after `delay` seconds."""
        at = self.world.clock.now + delay
        if at < self._planned:
            self._planned = at
            self.world.clock(delay, self._turn)

    def _turn(self) -> None:
        now = self.world.clock.now
        if now < self._planned:
            return
        self._planned = inf
        life = self.life
        if life is None:
            return
        if life._inbox.empty() and life.due > LEAST:
            self._plan_next(life)
            return
        self._guard(life._step)
        if self.life is life:
            if life.stopped:
                raise AssertionError(f"the coordinator gave up: {life.stopped}")
            self.world.check.stepped(life)
            if life.core.finished:
                self.leave()
            else:
                self._plan_next(life)

    def _plan_next(self, life: VirtualCoordinator) -> None:
        if not life._inbox.empty():
            self.poke(0.0)
        elif life.due < inf:
            self.poke(max(life.due, LEAST))

    def _guard(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except Crash:
            self.die()

    def leave(self) -> None:
        """All rounds are done: an orderly end."""
        life = self.life
        assert life is not None
        self._guard(life._end)
        if self.life is life:
            self.world.check.ended(life)
            self.life = None

    def die(self) -> None:
        """kill -9; back after a while."""
        life, self.life = self.life, None
        for link in self.links:
            link.close(clean=False)
        if life is not None:
            life.ledger.close()
            life.history.close()
        self.world.note("coordinator died")
        self.world.clock(self.random.uniform(0.1, 8.0), self.start)
