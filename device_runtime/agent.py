"""The device's mind, without senses or hands: `Agent.handle(event, now) -> actions`.

No sockets, clocks, threads or files: the runtime feeds it what happened and carries out what it decides, so the same
agent runs over MQTT, in memory and in virtual time. Everything it is told may come twice, late, or after a restart of
either side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import singledispatch

from device_runtime import assignments
from device_runtime.backlog import Backlog
from device_runtime.birth import Birth
from device_runtime.docket import FAILED, Docket, Job
from device_runtime.downloads import Downloads
from device_runtime.events import (
    Action,
    Annotate,
    Ask,
    ChunkHeard,
    Drop,
    Event,
    GiveUp,
    Health,
    Keep,
    ManifestHeard,
    Note,
    Obey,
    OrderDone,
    Power,
    Predicted,
    Profiled,
    Publish,
    Released,
    SensorsChanged,
    StartTraining,
    StopTraining,
    Subscribe,
    Tick,
    TrainingDone,
    TrainingFailed,
    Upload,
    UseModel,
)
from device_runtime.fetching import Fetching
from device_runtime.following import Following
from models.local import Local
from models.spec import SHARED, ModelSpec
from protocol.errors import Malformed
from protocol.messages import (
    Answer,
    Assignment,
    CoordinatorState,
    Label,
    Order,
    Report,
    Status,
    strange,
)
from protocol.topics import Topics
from protocol.transport import Connected, Lost, Stopped

ASK_AGAIN = 5.0  # seconds without progress after which missing blocks are asked for once more
WELCOME = 1.0  # seconds that the coordinator's retained state may take to come before an old update is sent whole


class Agent:
    """One life of one device.

    birth      what is known at the start: boot id, tier, runtime version, whether it can train
    kept       updates that an earlier life left in the outbox: (update id, assignment id)
    jitter     draws from [0, 1): spreads a fleet's repeats
    predicts       the modalities of its inference, which is by whole sets of blocks, whether they deliver or not;
                   empty where there is none. A device that neither trains nor predicts downloads no block
    """

    def __init__(
        self,
        fleet: Topics,
        device: str,
        birth: Status,
        *,
        jitter: Callable[[], float],
        predicts: Iterable[str] = (),
        kept: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.fleet, self.device = fleet, device
        self._birth, self._predicts = Birth(birth), frozenset(predicts)
        self._uses_blocks = birth.can_train or bool(self._predicts)
        self.downloads = Downloads()
        self.counts: Counter[str] = Counter()
        self.model: ModelSpec | None = None
        self.coordinator: CoordinatorState | None = None
        self.connected = False
        self._backlog = Backlog(jitter)
        self._docket = Docket()
        for update, assignment in kept:
            self._backlog.add(update, math.inf, begun=True)  # what of it has come is asked first
            self._docket.done[assignment] = update
        self._asked = math.inf  # since when blocks have been missing, or when they were last asked for
        self._everything = False  # blocks of modalities that we do not own are needed too
        self._following = Following(fleet, self.downloads)
        self._decline = ""
        self._fetching = Fetching(fleet, self.downloads, self._following)

    @property
    def status(self) -> Status:
        """What the fleet is told of this device, or will be."""
        return self._birth.status

    # -- the two calls ---------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event; `now` in seconds on any clock that only goes forward."""
        try:
            actions = Agent._on.dispatch(type(event))(self, event, now)
        except Malformed as error:
            self.counts["refused messages"] += 1
            actions = [Note(str(error), trouble=True)]
        return [*actions, *self._move_on(now)]

    def wakes(self) -> float:
        """When `handle(Tick(), now)` is next worth calling; inf where nothing is planned."""
        times = [math.inf]
        if self.connected:  # without a connection neither can be done, and waking would only spin
            times += [self._birth.due, self._backlog.due()]
        waiting = self._docket.waiting
        if waiting:
            times.append(waiting.ends)
            if self.connected and waiting.lacks:
                times.append(self._asked + ASK_AGAIN)
        return min(times)

    def forget(self, update: str) -> None:
        """An update is no longer in the outbox: it gave way, or its file was damaged."""
        self._backlog.remove(update)

    # -- the connection --------------------------------------------------------------------------

    @singledispatch  # singledispatchmethod would make a function anew at every call
    def _on(self, event: object, now: float) -> list[Action]:
        raise TypeError(f"not an event of the agent: {type(event).__name__}")

    @_on.register
    def _connected(self, event: Connected, now: float) -> list[Action]:
        self.connected = True
        self._following.begin()
        self._backlog.all_due(now if self.coordinator else now + WELCOME)
        own = [self.fleet.device(self.device, leaf) for leaf in ("assignment", "answer", "order", "label")]
        manifests = self._manifest_filters()
        return [Subscribe((self.fleet.coordinator("state"), *own, *manifests)), self._tell_birth(now)]

    @_on.register
    def _lost(self, event: Lost, now: float) -> list[Action]:
        was, self.connected = self.connected, False
        return [Note(f"connection lost: {event.reason}")] if was else []

    @_on.register
    def _stopped(self, event: Stopped, now: float) -> list[Action]:
        self.connected = False
        return [GiveUp(event.reason)]

    # -- the coordinator -------------------------------------------------------------------------

    @_on.register
    def _state(self, event: CoordinatorState, now: float) -> list[Action]:
        before, self.coordinator = self.coordinator, event
        actions: list[Action] = []
        odd = strange(event.protocol, "the coordinator")
        if odd and event.online and (before is None or before.protocol != event.protocol):
            actions.append(Note(odd, trouble=True))
        fresh = before is None or (before.boot, before.epoch) != (event.boot, event.epoch)
        if event.online and event.model:
            actions += self._adopt(event.model)
        if before is None and event.online:
            self._backlog.all_due(now)
        elif before is not None and event.online and (fresh or not before.online):
            # It may have lost everything that was not yet in its journal.
            self._backlog.all_due(now, spread=1.0, anew=fresh)
            actions.append(self._tell_birth(now))
        if fresh:
            actions += _stop(self._docket.renew(event.epoch, self._backlog, first=before is None))
        return actions

    def _adopt(self, plain: Mapping[str, object]) -> list[Action]:
        try:
            spec = ModelSpec.from_dict(dict(plain))
        except (ValueError, TypeError, KeyError) as error:
            raise Malformed("CoordinatorState", f"model: {error}") from None
        if spec == self.model:
            return []
        self.model, self._everything = spec, False
        filters = self._manifest_filters()
        follow: list[Action] = [Subscribe(filters)] if self.connected and filters else []
        return [UseModel(spec), *follow]

    @_on.register
    def _manifest(self, event: ManifestHeard, now: float) -> list[Action]:
        if event.block not in self._needed():
            return []
        return [*self._following.manifest(event.block, event.manifest), *self._fetching.done()]

    @_on.register
    def _chunk(self, event: ChunkHeard, now: float) -> list[Action]:
        follow = self._following.chunk(event.block, event.chunk) if event.block in self._needed() else []
        return [*follow, *self._fetching.done()]

    @_on.register
    def _answer(self, event: Answer, now: float) -> list[Action]:
        if event.update not in self._backlog:
            return []
        if event.resume:
            return [Upload(event.update, tuple(event.missing))] if self._backlog.answered(event.update) else []
        if event.again and not event.accepted:
            self._backlog.postpone(event.update, now)
            self.counts["updates to repeat"] += 1
            return []
        self._backlog.remove(event.update)
        self.counts["updates accepted" if event.accepted else "updates refused"] += 1
        dropped: list[Action] = [Drop(event.update, event.accepted)]
        if not event.accepted:
            dropped.append(Note(f"update {event.update[:8]} was refused: {event.reason}", trouble=True))
        return dropped

    @_on.register
    def _order(self, event: Order, now: float) -> list[Action]:
        if event.kind != "adopt" or "version" not in event.args:
            return [Obey(event)]
        version = event.args["version"]
        if not isinstance(version, int) or version < 1:
            raise Malformed("Order", "args.version: a version is a number from 1 on")
        if self.model is None or not self._predicts:
            why = "this device does not predict" if self.model else "no coordinator has said yet what the model is"
            report = Report(id=event.id, kind=event.kind, ok=False, reason=why)
            return [Publish(self.fleet.device(self.device, "report"), report)]
        return self._fetching.begin(event, version, (*(m for m in self.model.names if m in self._predicts), SHARED))

    @_on.register
    def _label(self, event: Label, now: float) -> list[Action]:
        return [Annotate(event)]

    # -- assignments -----------------------------------------------------------------------------

    @_on.register
    def _assignment(self, event: Assignment, now: float) -> list[Action]:
        if event.id in self._docket.done:
            return self._once_more(event, now)
        if self._docket.holds(event.id):
            return []
        if self._docket.stale(event) or (self.coordinator and event.epoch < self.coordinator.epoch):
            self.counts["stale assignments"] += 1
            return []
        try:
            local = Local.from_dict(event.training)
        except TypeError as error:
            raise Malformed("Assignment", f"training: {error}") from None
        return _stop(self._docket.add(Job(event, local, now)))

    def _once_more(self, event: Assignment, now: float) -> list[Action]:
        update = self._docket.done[event.id]
        if update in self._backlog:
            self._backlog.hurry(update, now)
        elif update == FAILED:
            return self._declined(event, "it was tried before and failed")
        return []

    def _move_on(self, now: float) -> list[Action]:
        """Whatever has become possible or due by now."""
        actions = self._start(self._docket.waiting, now) if self._docket.waiting else []
        if self.connected:
            ask = self.coordinator is not None and self.coordinator.resumes
            actions += [Ask(u) if begun else Upload(u) for u, begun in self._backlog.take(now, ask=ask)]
            if now >= self._birth.due:
                actions.append(self._tell_birth(now))
        return actions

    def _start(self, job: Job, now: float) -> list[Action]:
        a = job.assignment
        if now >= job.ends:
            self._docket.waiting = None
            return [Note(f"round {a.round}: its deadline passed before it could begin", trouble=True)]
        if self.model is None or self.coordinator is None or a.epoch > self.coordinator.epoch:
            return [Subscribe((self.fleet.coordinator("state"),))] if self._due_to_ask(job, now) else []
        reason = assignments.objection(a, job.local, self.model, self.status, self._decline)
        if reason:
            self._docket.waiting = None
            return self._declined(a, reason)
        follow: list[Action] = []
        if job.local.zero_fill and not self._everything:
            self._everything = True
            if self.connected:
                follow = [Subscribe(self._manifest_filters())]
        missing = assignments.missing(a, job.local, self.model, self.status.modalities, self.downloads.held)
        if missing:
            return [*follow, *self._ask_for(job, missing, now)]
        job.lacks, self._asked = False, math.inf
        if self._docket.training:
            return follow
        self._docket.begin()
        present = assignments.present(a, job.local, self.model, self.status.modalities)
        blocks = {b: self.downloads.held[b] for b in assignments.blocks(present, self.model)}
        return [*follow, StartTraining(a, present, blocks, assignments.latest(a, job.received, self.model))]

    def _ask_for(self, job: Job, missing: tuple[str, ...], now: float) -> list[Action]:
        if not self._due_to_ask(job, now):
            return []
        self.counts["blocks asked for again"] += len(missing)
        return [Subscribe(self._following.again(missing))]

    def _due_to_ask(self, job: Job, now: float) -> bool:
        """Whether to subscribe again, which makes the broker send what it retains, in case something got lost.

        Not counted from the assignment: where rounds are shorter than the pause, nothing would ever be asked for.
        """
        job.lacks, self._asked = True, min(self._asked, now)
        if not self.connected or now < self._asked + ASK_AGAIN:
            return False
        self._asked = now
        return True

    @_on.register
    def _trained(self, event: TrainingDone, now: float) -> list[Action]:
        job = self._docket.finish(event.assignment, event.update.id)
        if job is None:
            return []
        self._backlog.add(event.update.id, now + job.assignment.slot)
        return [Keep(event.update)]

    @_on.register
    def _failed(self, event: TrainingFailed, now: float) -> list[Action]:
        job = self._docket.finish(event.assignment, FAILED)
        if job is None:
            return []
        return self._declined(job.assignment, event.reason)

    def _declined(self, a: Assignment, reason: str) -> list[Action]:
        self.counts["assignments declined"] += 1
        report = Report(id=a.id, kind="declined", ok=False, reason=reason, values={"round": a.round, "epoch": a.epoch})
        said = Note(f"round {a.round}: declined, {reason}", trouble=True)
        return [said, Publish(self.fleet.device(self.device, "report"), report)]

    # -- the device itself -----------------------------------------------------------------------

    @_on.register
    def _ordered(self, event: OrderDone, now: float) -> list[Action]:
        return [Publish(self.fleet.device(self.device, "report"), event.report)]

    @_on.register
    def _predicted(self, event: Predicted, now: float) -> list[Action]:
        return (
            [Publish(self.fleet.device(self.device, "prediction"), event.prediction, qos=0)] if self.connected else []
        )

    @_on.register
    def _sensors(self, event: SensorsChanged, now: float) -> list[Action]:
        if not self._birth.sensed(event, now) or not self.connected:
            return []
        filters = self._manifest_filters()
        follow: list[Action] = [Subscribe(filters)] if filters else []
        return [*follow, self._tell_birth(now)]

    @_on.register
    def _profiled(self, event: Profiled, now: float) -> list[Action]:
        self._birth.measured(event, now)
        return []

    @_on.register
    def _released(self, event: Released, now: float) -> list[Action]:
        self._birth.released(event.version, now)
        return []

    @_on.register
    def _power(self, event: Power, now: float) -> list[Action]:
        self._birth.powered(event, now)
        return []

    @_on.register
    def _health(self, event: Health, now: float) -> list[Action]:
        self._decline = event.decline
        return []

    @_on.register
    def _tick(self, event: Tick, now: float) -> list[Action]:
        return []

    def _tell_birth(self, now: float) -> Action:
        return Publish(self.fleet.device(self.device, "status"), self._birth.tell(now), retain=True)

    def _needed(self) -> tuple[str, ...]:
        """Names of the blocks and bases that this device computes with."""
        if self.model is None or not self._uses_blocks:
            return ()
        names = self.model.names if self._everything else {*self.status.modalities, *self._predicts}
        here = assignments.blocks(tuple(m for m in self.model.names if m in names), self.model)
        return (*here, *self._fetching.names)

    def _manifest_filters(self) -> tuple[str, ...]:
        return tuple(self.fleet.manifest(block) for block in self._needed())


def _stop(assignment: str) -> list[Action]:
    return [StopTraining(assignment)] if assignment else []
