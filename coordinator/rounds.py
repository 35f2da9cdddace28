"""The round as a pure state machine: (event, now) -> actions. No sockets, clocks, threads or files.

The service feeds it events and carries out its actions in order; the simulator and the fault tests do the same in
virtual time. `now` is any clock that does not run backwards, in seconds.

    GATHERING -> TRAINING -> FOLDING -> TRAINING -> ...
        ^           |           |
        +-- nobody is ready ----+
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, inf

from coordinator.events import (
    Acknowledge,
    Action,
    Declined,
    Event,
    Fold,
    Folded,
    Keep,
    Open,
    Say,
    Send,
    StatusArrived,
    Store,
    Stored,
    Suspended,
    UpdateArrived,
    UpdateHead,
    Wish,
)
from coordinator.lateness import Latecomers, unanswered
from coordinator.quarantine import Held
from coordinator.registry import Registry, normalisation
from coordinator.strategies.base import Plan, Strategy
from models.spec import SHARED, ModelSpec
from protocol.messages import Assignment


class Phase(str, Enum):
    GATHERING = "gathering"  # waiting for devices
    TRAINING = "training"  # assignments are out
    FOLDING = "folding"  # the round is closed, its blocks are being folded


@dataclass(frozen=True)
class Pace:
    """When rounds begin and end.

    expect     devices to wait for before the first round, for at most `gather` seconds
    settle     seconds without a change of any device that are waited for too: sensors that fill their windows
    patience   a round is closed after the longest predicted time x patience + margin seconds
    margin     also how long a round lasts at least that brought nothing: whoever declines does so at once
    rounds     stop after so many rounds; 0: never
    buffer     close a round once so many updates are in; 0: wait for everybody. Nobody's work is lost by that: a round
               waits for those whose update would be too late for the next one
    staleness  rounds that an update may come late and still be folded in, with less weight (coordinator.lateness)
    """

    expect: int = 1
    gather: float = 30.0
    settle: float = 0.0
    patience: float = 2.0
    margin: float = 5.0
    rounds: int = 0
    buffer: int = 0
    staleness: int = 0

    def __post_init__(self) -> None:
        if self.buffer < 0 or self.staleness < 0 or (self.buffer and not self.staleness):
            raise ValueError(
                f"rounds with buffer {self.buffer} and staleness {self.staleness}: a buffer needs a staleness of at "
                f"least 1, or everybody who is slower than the buffer fills works for nothing"
            )


@dataclass
class Rounds:
    """The coordinator's core. `versions` are the blocks' current versions, `round` the one that is open or next."""

    spec: ModelSpec
    strategy: Strategy
    pace: Pace = field(default_factory=Pace)
    epoch: int = 1
    round: int = 1
    phase: Phase = Phase.GATHERING
    paused: bool = False
    versions: dict[str, int] = field(default_factory=dict)
    scales: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    scaled: dict[str, int] = field(default_factory=dict)  # modality -> samples behind its scale; not in it: given
    wake: float = inf  # when a round has something to do although nothing arrives

    def __post_init__(self) -> None:
        self.registry = Registry(self.spec)
        self.versions = self.versions or dict.fromkeys((*self.spec.names, SHARED), 0)
        self.assignments: dict[str, Assignment] = {}
        self.late = Latecomers(self.pace.staleness)
        self.storing: dict[str, UpdateHead] = {}  # update id -> head, journalled but not yet on disk
        self.stored: dict[str, UpdateHead] = {}  # device -> its update of this round
        self.declined: dict[str, str] = {}
        self.began = 0.0
        self.deadline = inf
        self.gathering_since: float | None = None
        self.rest = 0.0  # until when no round begins, after one that brought nothing
        self.stuck = ""  # why no round can begin although devices are ready
        self.done: dict[str, UpdateHead] = {}  # device -> its update of the round before, for repeats and the display

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event. Unknown, stale and repeated ones change nothing."""
        actions: list[Action] = [Say()] if self.registry.let_out(now) else []
        if isinstance(event, StatusArrived):
            self._status(event, now, actions)
        elif isinstance(event, UpdateArrived):
            self._update(event.head, actions)
        elif isinstance(event, Stored):
            self._stored(event, actions)
        elif isinstance(event, Declined):
            self._declined(event, actions)
        elif isinstance(event, Folded):
            self._folded(event, actions)
        elif isinstance(event, Wish):
            self._wish(event, actions)
        elif isinstance(event, Suspended):
            # What an operator holds only an operator releases.
            self.registry.quarantined.setdefault(event.device, event.held)
            actions.append(Say())
        self._advance(now, actions)
        return actions

    @property
    def due(self) -> float:
        """When the next Tick is due."""
        return min(self.wake, self.registry.next_out)

    @property
    def finished(self) -> bool:
        """Whether all the rounds that were wanted are committed."""
        return bool(self.pace.rounds) and self.round > self.pace.rounds

    # -- what arrives ------------------------------------------------------------------------------

    def _status(self, event: StatusArrived, now: float, actions: list[Action]) -> None:
        before = self.registry.devices.get(event.device)
        if before and event.status.online and before.status.boot != event.status.boot:
            self.late.restarted(event.device)
        if self.registry.arrive(event.device, event.status, now):
            self.rest = 0.0
            actions.append(Say())
        # A device that is born again may have lost its assignment, even where nothing else about it has changed: it was
        # gone for less than its will's delay. What it finished before comes from its outbox.
        waiting = self.phase is Phase.TRAINING and event.device in self.assignments and event.device not in self.stored
        if event.status.online and waiting:
            self.declined.pop(event.device, None)
            self._send(event.device, now, actions)

    def _update(self, head: UpdateHead, actions: list[Action]) -> None:
        def answer(accepted: bool, reason: str = "", again: bool = False) -> None:
            actions.append(Acknowledge(head.device, head.id, accepted, reason, again))

        for earlier in (self.stored.get(head.device), self.done.get(head.device)):
            if earlier and earlier.id == head.id:
                return answer(True)
        if head.id in self.storing:
            return None  # its answer follows once it is on disk
        reason = self._refusal(head)
        if reason:
            # Between rounds a late update is early for the next one.
            soon = self.late.staleness > 0 and self.phase is not Phase.TRAINING
            return answer(False, reason, again=soon and self.asked(head.device, head.assignment) is not None)
        self.storing[head.id] = head
        actions.append(Store(head, self.round))
        return None

    def asked(self, device: str, assignment: str) -> Assignment | None:
        """The assignment of this id, if the device may answer it in this round or the next."""
        for a in (self.assignments.get(device), self.late.assignments.get(device)):
            if a is not None and a.id == assignment:
                return a
        return None

    def _refusal(self, head: UpdateHead) -> str:
        if head.device in self.registry.quarantined:
            return f"quarantined: {self.registry.quarantined[head.device].reason}"
        if head.epoch != self.epoch:
            return f"stale: trained in epoch {head.epoch}, this is epoch {self.epoch}"
        if self.phase is not Phase.TRAINING or not 0 <= self.round - head.round <= self.late.staleness:
            return f"stale: made for round {head.round}, {self.phase.value} round {self.round}"
        assignment = self.asked(head.device, head.assignment)
        if assignment is None or assignment.round != head.round:
            return f"not assigned: {head.assignment!r} is none of this device's assignments"
        if head.device in self.stored or any(other.device == head.device for other in self.storing.values()):
            return f"duplicate: round {self.round} already has an update of this device"
        return check_head(head, assignment)

    def _stored(self, event: Stored, actions: list[Action]) -> None:
        for id in event.ids:
            head = self.storing.pop(id, None)
            if head is None:
                continue
            if self.phase is Phase.TRAINING and self.asked(head.device, head.assignment) and head.epoch == self.epoch:
                self.stored[head.device] = head
                actions.append(Acknowledge(head.device, head.id, True))
            else:
                actions.append(Acknowledge(head.device, head.id, False, f"stale: round {head.round} has closed"))

    def _declined(self, event: Declined, actions: list[Action]) -> None:
        assignment = self.assignments.get(event.device)
        if assignment and assignment.id == event.assignment and event.device not in self.stored:
            self.declined[event.device] = event.reason
            actions.append(Say())
        elif self.late.dropped(event.device, event.assignment):
            actions.append(Say())

    def _wish(self, event: Wish, actions: list[Action]) -> None:
        if event.kind == "pause":
            self.paused = True
        elif event.kind == "resume":
            self.paused = False
        elif event.kind == "quarantine":
            self.registry.quarantined[event.device] = Held(event.reason or "by an operator")
        elif event.kind == "release":
            self.registry.quarantined.pop(event.device, None)
        actions += [Keep(self.round, self.paused, self.registry.held, event.operator, event.request), Say()]

    # -- rounds ------------------------------------------------------------------------------------

    def _advance(self, now: float, actions: list[Action]) -> None:
        closes = self._enough() or self._all_in() or now >= self.deadline
        if self.phase is Phase.TRAINING and closes and not self.storing:
            self.phase, self.wake = Phase.FOLDING, inf
            order = tuple(self.stored[d].id for d in sorted(self.stored))
            actions += [Fold(self.round, self.epoch, order), Say()]
        if self.phase is Phase.GATHERING:
            self._gather(now, actions)

    def _all_in(self) -> bool:
        """Whether nobody who could still answer is left."""
        return not self._awaited(self.assignments.keys() | self.late.busy)

    def _enough(self) -> bool:
        """Whether the buffer is full and nobody's work would be lost by not waiting."""
        full = self.pace.buffer and len(self.stored) >= self.pace.buffer
        return bool(full) and not self._awaited(self.late.last_chance(self.round))

    def _awaited(self, devices: Collection[str]) -> bool:
        """Whether one of these devices may still answer."""
        return any(self._may_answer(d) for d in set(devices) - self.stored.keys() - self.declined.keys())

    def _may_answer(self, device: str) -> bool:
        known = self.registry.devices.get(device)  # after a restart its birth may still be on the way
        return (known is None or known.status.online) and device not in self.registry.quarantined

    def _gather(self, now: float, actions: list[Action]) -> None:
        self.stuck = ""
        ready = [] if self.paused or self.finished else self.registry.ready()
        if self.late.busy and ready:
            # They train on. A round with nobody else is there to take their updates.
            self._open([d for d in ready if d not in self.late.busy], now, actions)
            return
        if not ready:
            self.gathering_since, self.wake = None, inf
            return
        if now < self.rest:
            self.wake = self.rest
            return
        if self.gathering_since is None:
            self.gathering_since = now
        patience_ends = self.gathering_since + self.pace.gather
        if self.round == 1 and now < patience_ends:
            quiet = max(d.since for d in self.registry.devices.values()) + self.pace.settle
            if len(ready) < self.pace.expect or now < quiet:
                self.wake = patience_ends if len(ready) < self.pace.expect else min(quiet, patience_ends)
                return
        self._open(ready, now, actions)

    def _open(self, ready: list[str], now: float, actions: list[Action]) -> None:
        plans = self.strategy.plan(self.round, [self.registry.member(d) for d in ready]) if ready else {}
        busy = [self.late.assignments[d] for d in self.late.busy if self._may_answer(d)]
        if not plans and not busy:  # ask again when somebody changes
            self.stuck = (
                f"no round can begin: none of {len(ready)} devices has time for a single step on a block of its own; "
                "raise deadline, joules or bytes of [coordinator]"
            )
            self.wake = inf
            actions.append(Say())
            return
        fresh = self._new_scales()
        self.scales.update(fresh)
        # A block whose normalisation changes is a new version: its assignment must not overtake its manifest.
        self.versions.update({m: self.versions[m] + 1 for m in fresh})
        self.assignments = {d: self._assignment(d, plan) for d, plan in sorted(plans.items())}
        seconds = [plan.seconds for plan in plans.values()] + [a.predicted_seconds for a in busy]
        longest = max(seconds)
        self.stored, self.declined = {}, {}
        self.phase, self.began = Phase.TRAINING, now
        self.deadline = now + longest * self.pace.patience + self.pace.margin
        self.wake = self.deadline
        renewed = {m: self.versions[m] for m in fresh}
        late, counts = dict(self.late.assignments), {m: self.scaled[m] for m in fresh}
        actions.append(Open(self.round, self.epoch, dict(self.assignments), fresh, renewed, late, counts))
        for device in self.assignments:
            self._send(device, now, actions)
        actions.append(Say())

    def _new_scales(self) -> dict[str, tuple[list[float], list[float]]]:
        """Normalisation of each modality from the sums that its owners sent, anew whenever the samples have doubled.

        Live sensors begin with one activity; what they show of a channel is not yet what the fleet will see.
        """
        fresh = {}
        for m in self.spec.names:
            sums = self.registry.sums(m)
            count = sum(one.count for one in sums.values())
            if m in self.scales and count < 2 * self.scaled.get(m, count):
                continue
            if merged := normalisation(sums):
                fresh[m], self.scaled[m] = merged, count
        return fresh

    def _assignment(self, device: str, plan: Plan) -> Assignment:
        needs = (*(self.spec.names if plan.local.zero_fill else self.registry.owned(device)), SHARED)
        limits = plan.budget
        return Assignment(
            id=f"{self.epoch}.{self.round}",
            round=self.round,
            epoch=self.epoch,
            steps=plan.steps,
            versions={block: self.versions[block] for block in needs},
            deadline=0.0,
            seconds=0.0 if limits.seconds == inf else limits.seconds,
            joules=0.0 if limits.joules == inf else limits.joules,
            rate=self.registry.devices[device].status.rate,
            training=plan.local.to_dict(),
            predicted_seconds=plan.seconds,
        )

    def _send(self, device: str, now: float, actions: list[Action]) -> None:
        # Work may go on for as long as it can be folded in.
        longer = self.late.staleness * (self.deadline - self.began) if self.late.staleness else 0.0
        left = max(self.deadline + longer - now, 0.0)
        # A little less is told: what is sent at the last moment must be here in time. 0 would be no deadline.
        told = max(left - min(self.pace.margin, left / 4), 0.1)
        assignment = self.assignments[device].model_copy(update={"deadline": told})
        actions.append(Send(device, assignment, max(1, ceil(left))))

    def _folded(self, event: Folded, actions: list[Action]) -> None:
        if self.phase is not Phase.FOLDING or event.round != self.round:
            return
        self.versions.update(event.versions)
        self.strategy.observe(self.round, event.seen)
        self.strategy.heard(self.round, [self.stored[d] for d in sorted(self.stored)])
        self.round += 1
        open_still = unanswered(self.late.assignments, self.assignments, self.stored)
        self.late.keep(open_still, self.round, self.declined)
        self.rest = 0.0 if self.stored else self.began + self.pace.margin
        self.done, self.stored, self.assignments = self.stored, {}, {}
        self.phase = Phase.GATHERING
        self.gathering_since = None
        actions.append(Say())

    # -- restart -----------------------------------------------------------------------------------

    def reopen(self, assignments: Mapping[str, Assignment], stored: Mapping[str, UpdateHead], now: float) -> None:
        """Continue a round that was open when the coordinator stopped, with the updates that it had."""
        self.assignments, self.stored = dict(assignments), dict(stored)
        self.phase, self.began = Phase.TRAINING, now
        asked = [*assignments.values(), *self.late.assignments.values()]
        longest = max((a.predicted_seconds for a in asked), default=0.0)
        self.deadline = self.wake = now + max(longest * self.pace.patience + self.pace.margin, self.pace.gather)


def check_head(head: UpdateHead, assignment: Assignment) -> str:
    """Why this update does not answer this assignment; empty if it does."""
    for block, (version, steps) in head.blocks.items():
        if block not in assignment.steps:
            return f"block {block}: not assigned"
        if version != assignment.versions.get(block):
            return f"block {block}: stale version {version}, assigned {assignment.versions.get(block)}"
        if not 1 <= steps <= assignment.steps[block]:
            return f"block {block}: {steps} steps, assigned {assignment.steps[block]}"
    if head.blocks and head.samples < 1:
        return "samples: at least one window must stand behind an update"
    return ""
