"""The real agent and its outbox on virtual time, with a stand-in for training and a shell that can die at any deed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_runtime.agent import Agent
from device_runtime.events import (
    Ask,
    Drop,
    GiveUp,
    Keep,
    Publish,
    SensorsChanged,
    StartTraining,
    StopTraining,
    Subscribe,
    Tick,
    TrainingDone,
    TrainingFailed,
    Unsubscribe,
    Upload,
)
from device_runtime.listen import heard
from device_runtime.outbox import Outbox
from device_runtime.uplink import pieces, question
from protocol.errors import ProtocolError
from protocol.faulty import FaultyTransport
from protocol.messages import BlockSpeed, Scale, Status, Update
from protocol.topics import Topics
from protocol.transport import Connected, Received, Will
from tests.faults.frailty import Crash, FrailTransport, Fuse
from tests.faults.training import stand_in_update

if TYPE_CHECKING:
    from tests.faults.world import World


@dataclass
class DeviceParty:
    """All lives of one device. `slow` multiplies the time that training was predicted to take."""

    world: World
    name: str
    folder: Path
    modalities: dict[str, int]
    windows: int
    random: random.Random
    slow: float = 1.0
    agent: Agent | None = None
    lives: int = 0
    boot: str = ""
    fuse: Fuse = field(default_factory=Fuse)
    link: FaultyTransport | None = None
    _planned: float = inf
    _ends: dict[str, Callable[[], None]] = field(default_factory=dict)  # of the training that runs

    def start(self) -> None:
        """Begin a life with what the outbox holds."""
        if self.agent is not None:
            return
        self.lives += 1
        self.fuse, self._max_payload = Fuse(), 0
        self.boot = f"{self.name}.{self.lives}"
        self.topics = Topics("sim")
        self.outbox = Outbox(self.folder)
        kept = [(e.update, e.assignment) for e in self.outbox.entries]
        self.agent = Agent(self.topics, self.name, self._birth(), jitter=self.random.random, kept=kept)
        self.link = self.world.link(self.name, self.lives)
        self._transport = FrailTransport(self.link, self.fuse, lambda topic, payload, retain: None)
        death = Status(online=False, boot=self.boot, reason="connection lost")
        agent = self.agent
        will = Will(self.topics.device(self.name, "status"), death.encode(), 2)
        self.world.check.born(self.name, self.agent.status)
        self._guard(lambda: self.link.open(lambda event: self._heard(agent, event), will))  # type: ignore[union-attr]

    def _birth(self) -> Status:
        seconds = 0.002 * (1 + len(self.name) % 3)
        speed = {m: BlockSpeed(forward=seconds, backward=2 * seconds) for m in (*self.modalities, "shared")}
        return Status(
            online=True,
            boot=self.boot,
            modalities=self.modalities,
            windows=self.windows,
            can_train=True,
            speed=speed,
            scale=self._scale(),
            watts=5.0,
        )

    def _scale(self) -> dict[str, Scale]:
        return {m: Scale(count=10, total=[1.0] * c, squares=[11.0] * c) for m, c in self.modalities.items()}

    # -- events in -----------------------------------------------------------------------------------

    def _heard(self, agent: Agent, event: object) -> None:
        self.world.clock(self.random.uniform(0.0, 0.002), lambda: self._take(agent, event))

    def _take(self, agent: Agent, event: object) -> None:
        if self.agent is not agent:
            return
        if isinstance(event, Connected):
            self._max_payload = event.max_payload
        if isinstance(event, Received):
            try:
                event = heard(self.topics, self.name, event)
            except ProtocolError:
                self.world.count("device refused a message")
                return
        if event is not None:
            self.tell(event)

    def tell(self, event: Any) -> None:
        """Give the agent an event and carry out what it decides."""
        if self.agent is not None:
            self._guard(lambda: self._carry_out(event))
        self.plan()

    def _carry_out(self, event: Any) -> None:
        assert self.agent is not None
        for action in self.agent.handle(event, self.world.clock.now):
            self._do(action)
        self.world.check.kept(self.name, {e.update for e in self.outbox.entries}, self.agent._backlog)

    def _guard(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except Crash:
            self.die()

    def plan(self) -> None:
        """Tick when the agent wants to be woken."""
        if self.agent is None:
            return
        at = max(self.agent.wakes(), self.world.clock.now)
        if at < self._planned:
            self._planned = at
            agent = self.agent
            self.world.clock(at - self.world.clock.now, lambda: self._tick(agent, at))

    def _tick(self, agent: Agent, at: float) -> None:
        if self._planned == at:
            self._planned = inf
        if self.agent is agent:
            self.tell(Tick())

    # -- actions out ---------------------------------------------------------------------------------

    def _do(self, action: Any) -> None:
        if isinstance(action, Subscribe):
            self._transport.subscribe(*action.filters)
        elif isinstance(action, Unsubscribe):
            self._transport.unsubscribe(*action.filters)
        elif isinstance(action, Publish):
            if isinstance(action.message, Status):
                self.world.check.born(self.name, action.message)
            self._transport.publish(action.topic, action.message.encode(), qos=action.qos, retain=action.retain)
        elif isinstance(action, StartTraining):
            self._train(action)
        elif isinstance(action, StopTraining):
            self.world.clock(0.05, self._ends.get(action.assignment, lambda: None))  # at the next step border
        elif isinstance(action, Keep):
            self._keep(action.update.id, action.update)
        elif isinstance(action, Ask):
            length = self.outbox.length(action.update)
            assert length is not None, f"{self.name}: {action.update} is asked for and is not in the outbox"
            asked = question(action.update, length, self._max_payload)
            self._transport.publish(self.topics.device(self.name, "report"), asked.encode())
        elif isinstance(action, Upload):
            body = self.outbox.body(action.update)
            assert body is not None, f"{self.name}: {action.update} is to be sent and is not in the outbox"
            for chunk in pieces(action, body, self._max_payload):
                self._transport.publish(self.topics.device(self.name, "update"), chunk.encode())
        elif isinstance(action, Drop):
            self.fuse.deed()
            self.outbox.remove(action.update)
        elif isinstance(action, GiveUp):
            raise AssertionError(f"{self.name} gave up: {action.reason}")

    def _keep(self, id: str, update: Update) -> None:
        self.fuse.deed()
        self.world.check.trained(update)
        self.outbox.put(id, update.assignment, update.encode())
        self.fuse.deed()

    def _train(self, start: StartTraining) -> None:
        agent, now = self.agent, self.world.clock.now
        wanted = max(0.05, start.assignment.predicted_seconds) * self.slow * self.random.uniform(0.8, 1.3)
        share = min(1.0, max(0.0, start.stop_at - now) / wanted)
        self.world.check.started(self.name, start, now)

        def done() -> None:
            if self.agent is not agent or self._ends.pop(start.assignment.id, None) is None:
                return
            update = stand_in_update(self.name, self.boot, start, self.world.cut, share, self.windows)
            late = "the time allowed was over before the first step"
            id = start.assignment.id
            self.tell(TrainingDone(id, update) if update.blocks else TrainingFailed(id, late))

        self._ends = {start.assignment.id: done}
        self.world.clock(wanted * share, done)

    # -- what happens to a device -----------------------------------------------------------------------

    def change_sensors(self, modalities: dict[str, int]) -> None:
        """Gain or lose modalities while it runs."""
        self.modalities = modalities
        self.tell(SensorsChanged(dict(modalities), self.windows, self._scale()))

    def die(self, away: float | None = None) -> None:
        """Power cut; back after a while."""
        self.agent, self._planned = None, inf
        if self.link is not None:
            self.link.close(clean=False)
        self.world.note(f"{self.name} died")
        self.world.clock(self.random.uniform(0.2, 15.0) if away is None else away, self.start)
