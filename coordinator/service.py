"""The coordinator's shell: transports, journal and clock around the round core.

One loop, one thread: events are taken in batches (coordinator.inlet), the core's actions are carried out, and nothing
is said to anybody (coordinator.speaker) before what it rests upon is on disk: one fdatasync per batch. So a full disk
stops the rounds and loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from coordinator import memory
from coordinator.commit import fold_round
from coordinator.defence import Defence
from coordinator.estimate import FedAvgEstimate
from coordinator.events import Action, Event, Fold, Folded, Keep, Open, Say, Store, Stored, Tick
from coordinator.history import History, record
from coordinator.inlet import CAN, Inlet
from coordinator.journal import JournalFull
from coordinator.ledger import Ledger, Resumed
from coordinator.publisher import Publisher
from coordinator.quarantine import Held, Limits
from coordinator.refusals import Refusals
from coordinator.releases import Releases
from coordinator.rounds import Pace, Rounds
from coordinator.scorer import Scored, Scorer, Snapshot
from coordinator.speaker import Speaker
from coordinator.strategies.base import Strategy
from coordinator.summary import summary
from coordinator.versions import Versions
from models.partition import Vector, initial, partition
from models.spec import ModelSpec
from protocol import broker_metrics
from protocol.errors import ProtocolError
from protocol.messages import PROTOCOL, CoordinatorState
from protocol.topics import Topics
from protocol.transport import Connected, Lost, Received, Stopped, Transport, Will
from protocol.waiting import take

log = logging.getLogger("relief.coordinator")

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
        self.topics, self.spec, self.strategy = Topics(fleet), spec, strategy
        self.base = dict(base or frozen)
        self.blocks: dict[str, Vector] = dict(start or fresh)
        if strategy.local().double:
            self.blocks = {name: vector.astype("f8") for name, vector in self.blocks.items()}
        self._defence = defence or Defence(limits=Limits(), momentum=strategy.local().momentum)
        self.core = Rounds(spec, strategy, pace, scales=dict(scales or {}))
        self.ledger = Ledger(folder, spec)
        self.history = History(folder / "metrics.jsonl")
        self.versions = Versions(folder / "versions")
        self._fedavg = FedAvgEstimate(spec, strategy.settings)
        self.boot = secrets.token_hex(8)
        self.alarms: dict[str, str] = {}
        self._control, self._bulk = control, bulk
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._scorer = Scorer(evaluate, self._inbox.put) if evaluate else None
        self._actions: deque[Action] = deque()
        self._outgoing: list[Action | str] = []  # blocks by name, and what the core wants said
        self._storing: list[str] = []
        self._unsaved = False
        self._retry = inf
        self._marks = (0, 0)  # bytes up and down when the round began
        self._zero = time.monotonic() - self.history.until  # the record's clock goes on where an earlier life ended
        self.stopped: str = ""
        # Called with every summary's round and fields in this thread: metrics, trackers, the log's context.
        self.listeners: list[Callable[[int, dict[str, Any]], None]] = []

        def now() -> float:
            return self._now()

        self._publisher = Publisher(self.topics, control, bulk)
        self.refusals = Refusals(self._defence, self.core.registry, self._feed, now)
        self._speaker = Speaker(
            self.topics, control, self._publisher, self.core, self.refusals,
            lambda name: self.blocks[name], self.alarms, now,
        )  # fmt: skip
        self._releases = Releases(self.versions, self._publisher, lambda: self.core.epoch)
        self.inlet = Inlet(
            self.topics, partition(spec), self.core, self._defence, self._speaker, self._releases, self._feed
        )

    # -- running -----------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Coordinate until `stop` is set, all rounds are done, or the broker refuses us for good (`stopped`)."""
        memory.keep()
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
        self.core.scaled.update(at.scaled)
        self._defence.restore(at.lengths)
        self.blocks = at.blocks
        self.core.late.keep(at.late, at.round)
        self.core.paused = at.paused
        self.core.registry.quarantined = {device: Held(reason) for device, reason in at.held.items()}
        if at.opened:
            self.core.reopen(at.assignments, at.stored, self._now())
        if at.begun:
            log.info("resumed: %s", at.said)
        else:
            # Epochs of different runs must differ: a device may still hold work for the run before this one.
            at.epoch = self.core.epoch = int(time.time())
            self.ledger.begin(at.epoch)
            self._unsaved = True
        self._publisher.state(
            CoordinatorState(
                online=True, boot=self.boot, epoch=at.epoch, protocol=PROTOCOL, resumes=True, model=self.spec.to_dict()
            )
        )
        for name, vector in self.base.items():
            if vector.size:
                # A base belongs to its modality's device too: it carries the scale it was trained with.
                self._publisher.block(f"{name}.base", 0, at.epoch, vector, self.core.scales.get(name))
        for name in self.blocks:
            self._speaker.block(name)
        self._releases.resume()

    def _end(self) -> None:
        if self._scorer:
            # A run that came to its end waits for its last score; one that is interrupted ends.
            self._scorer.close(30.0 if self.core.finished else 2.0)
            while not self._inbox.empty():
                item = self._inbox.get()
                if isinstance(item, Scored):
                    self._scored(item)
        self._say(force=True)
        self._checkpoint(force=True)
        with contextlib.suppress(ProtocolError):  # where too much waits for the broker, all is closed none the less
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
        core = self.core.due if self._retry == inf else self._retry
        return min(core, self._speaker.due)

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
        if self._now() >= self.core.due:
            self._feed(Tick())
        self._speaker.repeat()
        self._settle()
        self._say()

    def _feed(self, event: Event) -> None:
        self._actions += self.core.handle(event, self._now())

    def _take(self, item: Any) -> None:
        if isinstance(item, Scored):
            self._scored(item)
        elif isinstance(item, tuple):
            connection, event = item
            if isinstance(event, Received):
                self.inlet.received(event)
            elif isinstance(event, Connected):
                self._connected(connection, event)
            elif isinstance(event, Lost):
                log.warning("%s connection lost: %s", connection, event.reason)
            elif isinstance(event, Stopped):
                self.stopped = f"{connection} connection: {event.reason}"

    def _connected(self, connection: str, event: Connected) -> None:
        if connection == "control":
            self._control.subscribe(*self.inlet.control)
            self._control.subscribe(*broker_metrics.TOPICS)
            self._speaker.connected()
        else:
            self._bulk.subscribe(*self.inlet.bulk)
            self._speaker.bulk_connected(event.max_payload)

    # -- what the core wants -------------------------------------------------------------------------

    def _settle(self) -> None:
        """Carry out actions until none are left, then speak; keep silent while the disk does not take the record."""
        if self._now() < self._retry < inf:
            return
        while self._on_disk():
            outgoing, self._outgoing = self._outgoing, []
            for one in outgoing:
                if one == "":
                    self._checkpoint()
                else:
                    self._speaker.speak(one)
            if not self._actions:  # a refusal that is said can be one too many: then the core wants more
                return

    def _on_disk(self) -> bool:
        """Carry out actions until none are left and have the record of them on disk; False where that is full."""
        while True:
            # What a commit rests upon, its round's opening above all, is on disk before the commit is even appended:
            # else a torn batch could leave the commit alone.
            while self._actions and not (self._unsaved and isinstance(self._actions[0], Fold)):
                self._do(self._actions.popleft())
            if not self._unsaved:
                return True
            try:
                self.ledger.journal.sync()
            except (JournalFull, OSError) as error:
                self.alarms["disk"] = str(error)
                log.error("rounds stand still: %s", error)
                self._retry = self._now() + RETRY_DISK
                self._speaker.want(at_once=True)
                return False
            self._unsaved, self._retry = False, inf
            self.alarms.pop("disk", None)
            if self._storing:
                ids, self._storing = tuple(self._storing), []
                self._feed(Stored(ids))

    def _do(self, action: Action) -> None:
        if isinstance(action, Store):
            self.ledger.update(action.head, self.inlet.tensors(action.head.id), action.round)
            self._storing.append(action.head.id)
            self._unsaved = True
        elif isinstance(action, Open):
            self.ledger.open(action)
            self._unsaved = True
            self._marks = (self.inlet.bytes_up, self._publisher.bytes_down)
            self._outgoing += [m for m in action.normalisation if m in self.blocks]
        elif isinstance(action, Fold):
            self._fold(action)
        elif isinstance(action, Keep):
            self.ledger.wish(action)
            self._unsaved = True
            self._outgoing.append(action)
        elif isinstance(action, Say):
            self._speaker.want()
        else:
            self._outgoing.append(action)

    def _fold(self, action: Fold) -> None:
        """Fold the round from the journal and record the commit; the blocks are published once it is on disk."""
        heads = [self.core.stored[d] for d in sorted(self.core.stored)]
        done = fold_round(self.strategy, self.blocks, self.core.versions, heads, self.ledger.delta)
        self.ledger.commit(action.round, action.epoch, action.updates, done)
        self._unsaved = True
        self.blocks = {**self.blocks, **done.blocks}
        began, assigned = self.core.began, len({*self.core.assignments, *self.core.late.busy})
        fedavg = self._fedavg.round(self.core.registry, self.core.assignments)
        self._defence.committed()
        self._feed(Folded(action.round, done.versions, done.seen))
        self.ledger.forget(action.updates)
        self._outgoing += list(done.blocks)
        now = self._now()
        up, down = self._marks
        self.history.round(
            record(
                action.round, began, now, assigned, heads, done.seen,
                self.inlet.bytes_up - up, self._publisher.bytes_down - down, fedavg,
            )
        )  # fmt: skip
        if self._scorer:
            self._scorer.submit(Snapshot(action.round, now, dict(self.blocks), dict(self.core.scales)))
        self._outgoing.append("")  # a checkpoint, once everything is said

    def _checkpoint(self, *, force: bool = False) -> None:
        """Write down where we are; a disk that is full costs only a longer replay and a longer journal."""
        core = self.core
        at = Resumed(True, core.epoch, core.round, self.blocks, core.versions, core.scales, core.scaled, done=core.done)
        at.late, at.lengths = core.late.assignments, self._defence.lengths
        at.paused, at.held = core.paused, core.registry.held
        try:
            written = self.ledger.checkpoint(replace(at), self.strategy, self.base, force=force)
            if written:
                loss = self.history.last.loss if self.history.last else 0.0
                self.versions.register(
                    core.round - 1, self.blocks, core.versions, self.spec, self.base, core.scales, loss=loss
                )
        except (JournalFull, OSError) as error:
            self.alarms["checkpoint"] = str(error)
            log.error("no checkpoint, or the journal is not compacted: %s", error)
            return
        if written:
            self.alarms.pop("checkpoint", None)

    def _scored(self, one: Scored) -> None:
        self.history.score(one.round, one.at, one.scores)
        self.versions.score(one.round, one.scores)
        self._speaker.want()

    def _say(self, *, force: bool = False) -> None:
        """Say the summary if it is due."""
        if not force and not self._speaker.summary_due:
            return
        if self.core.stuck and "budget" not in self.alarms:
            log.error("%s", self.core.stuck)
        found = {"history": self.history.problem, "versions": self.versions.problem, "budget": self.core.stuck}
        for name, trouble in found.items():
            self.alarms.pop(name, None)
            if trouble:
                self.alarms[name] = trouble
        fields = summary(self.core, self.history, self._now())
        fields |= {"alarms": dict(self.alarms), "refused": dict(self.refusals.counts), "can": list(CAN)}
        fields |= {"bytes_up": self.inlet.bytes_up, "bytes_down": self._publisher.bytes_down}
        fields |= {"broker": self.inlet.broker.values()}
        self._tell(fields)
        self._speaker.summary(fields)

    def _tell(self, fields: dict[str, Any]) -> None:
        """Whatever happens to a listener, a tracker whose disk is full or whose server is gone, rounds go on."""
        trouble = ""
        for listen in self.listeners:
            try:
                listen(self.core.round, fields)
            except Exception as error:
                if "listener" not in self.alarms and not trouble:
                    log.warning("a listener of the summary failed", exc_info=True)
                trouble = str(error) or type(error).__name__
        if trouble:
            self.alarms["listener"] = trouble
        else:
            self.alarms.pop("listener", None)
