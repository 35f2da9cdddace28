"""The coordinator's shell: transports, journal and clock around the round core.

One loop, one thread: events are taken in batches, the core's actions are carried out, and nothing is said to anybody
before what it rests upon is on disk (one fdatasync per batch). So a full disk stops the rounds and loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from coordinator.commit import fold_round
from coordinator.defence import Defence
from coordinator.estimate import FedAvgEstimate
from coordinator.events import (
    Acknowledge,
    Action,
    Declined,
    Event,
    Fold,
    Folded,
    Open,
    Say,
    Send,
    StatusArrived,
    Store,
    Stored,
    Tick,
    UpdateArrived,
    UpdateHead,
    Wish,
)
from coordinator.history import History, record
from coordinator.intake import check
from coordinator.journal import JournalFull
from coordinator.ledger import Ledger, Resumed
from coordinator.orders import passed_on
from coordinator.publisher import Publisher
from coordinator.quarantine import Limits
from coordinator.rounds import Pace, Rounds
from coordinator.scorer import Scored, Scorer, Snapshot
from coordinator.strategies.base import Strategy
from coordinator.summary import summary
from models.partition import Vector, initial, partition
from models.spec import ModelSpec
from protocol import broker_metrics
from protocol.chunks import Reassembly, chunk_size
from protocol.errors import ProtocolError, TooLarge
from protocol.messages import (
    Answer,
    Chunk,
    CoordinatorState,
    Reply,
    Report,
    Request,
    RoundSummary,
    Status,
    Update,
    decode,
)
from protocol.topics import Topics
from protocol.transport import Connected, Lost, Received, Stopped, Transport, Will
from protocol.waiting import take

log = logging.getLogger("relief.coordinator")

SAY_EVERY = 0.25  # seconds between two summaries at least
OPERATOR = ""  # who is not a device
LISTEN_AGAIN = 60.0  # seconds between two looks at all retained births, in case one got lost on its way here
WISHES = ("pause", "resume", "quarantine", "release")  # what operators may ask for
REPEAT = 5.0  # seconds until what the broker did not take is said again
RETRY_DISK = 2.0  # seconds until a full disk is tried again


class Coordinator:
    """One fleet's coordinator over two connections: `control` for what must be quick, `bulk` for tensors.

    base       frozen vectors of a pre-trained model (lora)
    start      trainable vectors to begin with instead of fresh ones
    evaluate   scores a Snapshot; runs in a thread of its own
    defence    bound of norms and quarantine; by default ten times the cohort's median and three refusals an hour
    """

    def __init__(
        self,
        *,
        fleet: str,
        spec: ModelSpec,
        strategy: Strategy,
        pace: Pace,
        folder: Path,
        control: Transport,
        bulk: Transport,
        base: Mapping[str, Vector] | None = None,
        start: Mapping[str, Vector] | None = None,
        scales: Mapping[str, tuple[list[float], list[float]]] | None = None,
        evaluate: Any = None,
        defence: Defence | None = None,
    ) -> None:
        fresh, frozen = initial(spec)
        self.topics, self.spec, self.strategy, self.cut = Topics(fleet), spec, strategy, partition(spec)
        self.base = dict(base or frozen)
        self.blocks: dict[str, Vector] = dict(start or fresh)
        if strategy.local().double:
            self.blocks = {name: vector.astype("f8") for name, vector in self.blocks.items()}
        self._defence = defence or Defence(limits=Limits(), momentum=strategy.local().momentum)
        self.core = Rounds(spec, strategy, pace, scales=dict(scales or {}))
        self.ledger = Ledger(folder, spec)
        self.history = History(folder / "metrics.jsonl")
        self._fedavg = FedAvgEstimate(spec, strategy.settings)
        self.boot = secrets.token_hex(8)
        self.counts: Counter[str] = Counter()  # what was refused, and why
        self.alarms: dict[str, str] = {}
        self._control, self._bulk = control, bulk
        self._publisher = Publisher(self.topics, control, bulk)
        self.broker = broker_metrics.BrokerMetrics()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._scorer = Scorer(evaluate, self._inbox.put) if evaluate else None
        self._reassembly: dict[str, Reassembly] = {}
        self._updates: dict[tuple[str, str], Update] = {}  # (device, id) -> accepted for storing, not yet journalled
        self._actions: deque[Action] = deque()
        self._outgoing: list[Action | str] = []  # blocks by name, and what the core wants said
        self._storing: list[str] = []
        self._unsaved = False
        self._retry = inf
        self._listen_at = inf
        self._held: dict[str, float] = {}  # device -> when its quarantine ends; not those held by an operator
        self._say_at, self._said = inf, 0.0
        self._logged: set[tuple[str, str]] = set()
        self._bytes_up = 0
        self._marks = (0, 0)  # bytes up and down when the round began
        self._zero = time.monotonic()
        self.stopped: str = ""
        # Called with every summary's round and fields in this thread: metrics, trackers, the log's context.
        self.listeners: list[Callable[[int, dict[str, Any]], None]] = []

    # -- running -----------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Coordinate until `stop` is set, all rounds are done, or the broker refuses us for good (`stopped`)."""
        self._resume()
        will = CoordinatorState(online=False, boot=self.boot, epoch=self.core.epoch)
        self._control.open(
            lambda e: self._inbox.put(("control", e)), Will(self.topics.coordinator("state"), will.encode())
        )
        self._bulk.open(lambda e: self._inbox.put(("bulk", e)))
        try:
            while not stop.is_set() and not self.stopped and not self.core.finished:
                self._step()
        finally:
            self._end()

    def wake(self) -> None:
        """Make the loop look around, from any thread or signal handler (after setting `stop`)."""
        self._inbox.put(None)

    def _resume(self) -> None:
        at = self.ledger.resume(self.strategy, self.blocks)
        self.core.epoch, self.core.round = at.epoch, at.round
        self.core.versions, self.core.done = at.versions, at.done
        self.core.scales.update(at.scales)
        self.blocks = at.blocks
        if at.assignments:
            self.core.reopen(at.assignments, at.stored, self._now())
        if at.begun:
            log.info("resumed: %s", at.said)
        else:
            # Epochs of different runs must differ: a device may still hold work for the run before this one.
            at.epoch = self.core.epoch = int(time.time())
            self.ledger.begin(at.epoch)
            self._unsaved = True
        self._publisher.state(CoordinatorState(online=True, boot=self.boot, epoch=at.epoch, model=self.spec.to_dict()))
        for name, vector in self.base.items():
            if vector.size:
                # A base belongs to its modality's device too: it carries the scale it was trained with.
                self._publisher.block(f"{name}.base", 0, at.epoch, vector, self.core.scales.get(name))
        for name in self.blocks:
            self._publish_block(name)

    def _end(self) -> None:
        if self._scorer:
            self._scorer.close()
            while not self._inbox.empty():
                item = self._inbox.get()
                if isinstance(item, Scored):
                    self._scored(item)
        self._say(self._now(), force=True)
        self._checkpoint(force=True)
        self._publisher.state(CoordinatorState(online=False, boot=self.boot, epoch=self.core.epoch))
        self._control.close()
        self._bulk.close()
        self.ledger.close()
        self.history.close()

    def _now(self) -> float:
        return time.monotonic() - self._zero

    def _due(self) -> float:
        """When the loop has something to do although nothing arrives."""
        # While the disk is full the core waits for it and not for its deadline, which may have passed long ago.
        core = self.core.wake if self._retry == inf else self._retry
        return min(core, self._say_at, self._listen_at, *self._held.values())

    def _step(self) -> None:
        """Wait for something to happen, take in all that has, carry out what the core wants."""
        wait = self._due() - self._now()
        try:
            items = [take(self._inbox, None if wait == inf else wait)]
        except queue.Empty:
            items = []
        while not self._inbox.empty():
            items.append(self._inbox.get())
        for item in items:
            self._take(item)
        if self._now() >= self.core.wake:
            self._feed(Tick())
        if self._now() >= self._listen_at:
            self._repeat()
        if self._held:
            self._let_out()
        self._settle()
        self._say(self._now())

    def _feed(self, event: Event) -> None:
        self._actions += self.core.handle(event, self._now())

    # -- what arrives ------------------------------------------------------------------------------

    def _take(self, item: Any) -> None:
        if isinstance(item, Scored):
            self._scored(item)
        elif isinstance(item, tuple):
            connection, event = item
            if isinstance(event, Received):
                self._received(event)
            elif isinstance(event, Connected):
                self._connected(connection, event)
            elif isinstance(event, Lost):
                log.warning("%s connection lost: %s", connection, event.reason)
            elif isinstance(event, Stopped):
                self.stopped = f"{connection} connection: {event.reason}"

    def _connected(self, connection: str, event: Connected) -> None:
        device = self.topics.device
        if connection == "control":
            self._control.subscribe(device("+", "status"), device("+", "report"), self.topics.coordinator("request"))
            self._control.subscribe(*broker_metrics.TOPICS)
            self._listen_at = self._now() + LISTEN_AGAIN
            self._publisher.again_control()
        else:
            self._publisher.chunk_size = chunk_size(event.max_payload)
            self._bulk.subscribe(device("+", "update"))
            self._publisher.again_bulk()

    def _received(self, event: Received) -> None:
        if self.broker.take(event.topic, event.payload):
            return
        levels = self.topics.parse(event.topic)
        if levels is None or not event.payload:
            return
        who = levels[1] if levels[0] == "device" else OPERATOR
        try:
            if levels[0] == "device" and len(levels) == 3:
                self._from_device(who, levels[2], event.payload)
            elif levels == ("coordinator", "request"):
                self._request(decode(Request, event.payload))
        except ProtocolError as error:
            self._refuse(who, f"{levels[-1]} refused: {error}")

    def _from_device(self, device: str, leaf: str, payload: bytes) -> None:
        if leaf == "status":
            self._feed(StatusArrived(device, decode(Status, payload)))
        elif leaf == "update":
            self._bytes_up += len(payload)
            limit = 16 * sum(self.cut.size(block) for block in self.cut.blocks) + 65536
            parts = self._reassembly.setdefault(device, Reassembly(max_bytes=limit))
            whole = parts.add(decode(Chunk, payload))
            if whole is not None:
                self._update(device, decode(Update, whole))
        elif leaf == "report":
            report = decode(Report, payload)
            if report.kind == "declined":
                self._feed(Declined(device, report.id, report.reason))

    def _update(self, device: str, update: Update) -> None:
        assignment = self.core.assignments.get(device)
        asked = assignment is not None and assignment.id == update.assignment
        reason = check(update, device, self.cut) or self._defence.judge(update, asked=asked)
        if reason:
            self._answer(Acknowledge(device, update.id, False, reason))
            return
        self._updates[device, update.id] = update
        self._feed(UpdateArrived(UpdateHead.of(update)))

    def _refuse(self, who: str, reason: str) -> None:
        """Count every refusal; log each kind once per sender, so that a broken device cannot fill the log."""
        kind = reason.split(":")[0]
        self.counts[kind] += 1
        if (who, kind) not in self._logged and len(self._logged) < 10_000:
            self._logged.add((who, kind))
            log.warning("%s: %s", who, reason)
        held = self._defence.refused(who, reason, self._now()) if who != OPERATOR else None
        if held:
            log.warning("%s is in quarantine for %.0f s: %s", who, held.until - held.since, held.reason)
            self._feed(Wish("quarantine", who, held.reason))
            self._held[who] = held.until

    def _let_out(self) -> None:
        """End the quarantines whose time is over."""
        now = self._now()
        for device in [d for d, until in self._held.items() if until <= now]:
            del self._held[device]
            self._feed(Wish("release", device))

    def _request(self, request: Request) -> None:
        if request.kind == "order":
            orders, told = passed_on(request, self.core.registry.devices)
            for device, order in orders.items():
                self._control.publish(self.topics.device(device, "order"), order.encode())
            self._control.publish(self.topics.reply(request.operator), told.encode())
            return
        reply = Reply(id=request.id, ok=request.kind in WISHES)
        if reply.ok:
            self._feed(Wish(request.kind, str(request.args.get("device", "")), str(request.args.get("reason", ""))))
        else:
            reply = reply.model_copy(update={"reason": f"{request.kind}: not possible with this coordinator"})
        self._control.publish(self.topics.reply(request.operator), reply.encode())

    # -- what the core wants -------------------------------------------------------------------------

    def _settle(self) -> None:
        """Carry out actions until none are left, then speak; keep silent while the disk does not take the record."""
        if self._now() < self._retry < inf:
            return
        while True:
            while self._actions:
                self._do(self._actions.popleft())
            if not self._unsaved:
                break
            try:
                self.ledger.journal.sync()
            except (JournalFull, OSError) as error:
                self.alarms["disk"] = str(error)
                log.error("rounds stand still: %s", error)
                self._retry, self._say_at = self._now() + RETRY_DISK, self._now()
                return
            self._unsaved, self._retry = False, inf
            self.alarms.pop("disk", None)
            if self._storing:
                ids, self._storing = tuple(self._storing), []
                self._feed(Stored(ids))
        outgoing, self._outgoing = self._outgoing, []
        for one in outgoing:
            self._speak(one)

    def _do(self, action: Action) -> None:
        if isinstance(action, Store):
            self.ledger.update(action.head, self._updates.pop((action.head.device, action.head.id)))
            self._storing.append(action.head.id)
            self._unsaved = True
        elif isinstance(action, Open):
            self.ledger.open(action)
            self._unsaved = True
            self._marks = (self._bytes_up, self._publisher.bytes_down)
            self._outgoing += [m for m in action.normalisation if m in self.blocks]
        elif isinstance(action, Fold):
            self._fold(action)
        elif isinstance(action, Say):
            self._say_at = min(self._say_at, max(self._now(), self._said + SAY_EVERY))
        else:
            self._outgoing.append(action)

    def _fold(self, action: Fold) -> None:
        """Fold the round from the journal and record the commit; the blocks are published once it is on disk."""
        heads = [self.core.stored[d] for d in sorted(self.core.stored)]
        done = fold_round(self.strategy, self.blocks, self.core.versions, heads, self.ledger.delta)
        self.ledger.commit(action.round, action.epoch, action.updates, done)
        self._unsaved = True
        self.blocks = {**self.blocks, **done.blocks}
        began, assigned = self.core.began, len(self.core.assignments)
        fedavg = self._fedavg.round(self.core.registry, self.core.assignments)
        self._updates.clear()
        self._defence.committed()
        self._feed(Folded(action.round, done.versions, done.seen))
        self.ledger.forget(action.updates)
        self._outgoing += list(done.blocks)
        now = self._now()
        up, down = self._marks
        self.history.round(
            record(
                action.round, began, now, assigned, heads, done.seen,
                self._bytes_up - up, self._publisher.bytes_down - down, fedavg,
            )
        )  # fmt: skip
        if self._scorer:
            self._scorer.submit(Snapshot(action.round, now, dict(self.blocks), dict(self.core.scales)))
        self._outgoing.append("")  # a checkpoint, once everything is said

    def _speak(self, one: Action | str) -> None:
        """Say it; what the broker cannot take now is made good later, by a repeat of all that is retained or by the
        devices' own repeats."""
        try:
            self._say_one(one)
        except ProtocolError as error:  # the broker is slower than we are, or takes less than it should
            self.alarms["broker"] = str(error)
            log.error("not said: %s", error)
            self._listen_at = min(self._listen_at, self._now() + REPEAT)

    def _repeat(self) -> None:
        """Look at all retained births again, and say what was not taken before."""
        self._listen_at = self._now() + LISTEN_AGAIN
        self._control.subscribe(self.topics.device("+", "status"))
        if self.alarms.pop("broker", ""):
            try:
                self._publisher.again_control()
                self._publisher.again_bulk()
            except ProtocolError as error:
                self.alarms["broker"] = str(error)
                self._listen_at = self._now() + REPEAT

    def _say_one(self, one: Action | str) -> None:
        if one == "":
            self._checkpoint()
        elif isinstance(one, str):
            self._publish_block(one)
        elif isinstance(one, Send):
            if one.assignment.round == self.core.round:  # it may have closed while the disk was full
                topic = self.topics.device(one.device, "assignment")
                self._control.publish(topic, one.assignment.encode(), expiry=one.expiry)
        elif isinstance(one, Acknowledge):
            self._answer(one)

    def _answer(self, one: Acknowledge) -> None:
        self._updates.pop((one.device, one.update), None)
        if one.accepted:
            self._defence.accepted(one.device)
        else:
            self._refuse(one.device, one.reason)
        answer = Answer(update=one.update, accepted=one.accepted, reason=one.reason, again=one.again)
        self._control.publish(self.topics.device(one.device, "answer"), answer.encode())

    def _publish_block(self, name: str) -> None:
        self._publisher.block(
            name, self.core.versions[name], self.core.epoch, self.blocks[name], self.core.scales.get(name)
        )

    def _checkpoint(self, *, force: bool = False) -> None:
        """Write down where we are; a disk that is full costs only a longer replay."""
        core = self.core
        at = Resumed(True, core.epoch, core.round, self.blocks, core.versions, core.scales, done=core.done)
        try:
            self.ledger.checkpoint(replace(at), self.strategy, self.base, force=force)
        except OSError as error:
            self.alarms["checkpoint"] = str(error)
            log.error("no checkpoint: %s", error)

    def _scored(self, one: Scored) -> None:
        self.history.score(one.round, one.at, one.scores)
        self._say_at = min(self._say_at, max(self._now(), self._said + SAY_EVERY))

    def _say(self, now: float, *, force: bool = False) -> None:
        """Publish the summary, at most every SAY_EVERY seconds."""
        if not force and now < self._say_at:
            return
        self._say_at, self._said = inf, now
        fields = summary(self.core, self.history, now)
        fields |= {"alarms": dict(self.alarms), "refused": dict(self.counts), "can": [*WISHES, "order"]}
        fields |= {"bytes_up": self._bytes_up, "bytes_down": self._publisher.bytes_down}
        fields |= {"broker": self.broker.values()}
        core = self.core
        for listen in self.listeners:
            listen(core.round, fields)
        message = RoundSummary(round=core.round, epoch=core.epoch, phase=core.phase.value, fields=fields)
        topic = self.topics.coordinator("round")
        try:
            self._control.publish(topic, message.encode(), retain=True)
        except TooLarge:  # a large fleet behind a broker of small packets: the figures without the devices
            self.counts["summary without devices"] += 1
            fields = {**fields, "devices": {}}
            with contextlib.suppress(ProtocolError):
                self._control.publish(topic, message.model_copy(update={"fields": fields}).encode(), retain=True)
        except ProtocolError:  # the next one comes in a moment
            self.counts["summaries left out"] += 1
