"""The page's only way to a fleet: one MQTT connection as an operator, read in batches."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from concurrent.futures import Future
from typing import Any

from protocol.errors import ProtocolError
from protocol.messages import CoordinatorState, Label, Reply, Report, Request, RoundSummary, Telemetry, decode
from protocol.topics import Topics
from protocol.transport import Connected, Event, Lost, Received, Stopped, Transport
from protocol.waiting import take
from tools.dashboard.board import Board

log = logging.getLogger("relief.dashboard")

BATCH = 0.25  # seconds that messages are gathered before they are read; of each topic only the latest counts
ANSWER = 10.0  # seconds until a request without a reply is given up


class NoRights(Exception):
    """The page was started to look only."""


class Feed:
    """Keeps `board` up to date in a thread of its own. Hold `lock` while reading the board.

    rights    whether `ask` and `label` may be used; without them not even the reply topic is subscribed to
    """

    def __init__(self, fleet: str, transport: Transport, *, rights: bool = False) -> None:
        self.board, self.rights = Board(fleet), rights
        self.lock = threading.Lock()
        self.counts = {"messages": 0, "summaries": 0, "refused": 0}
        self._topics, self._transport = Topics(fleet), transport
        self._inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._waiting: dict[str, tuple[float, Future[Reply]]] = {}
        self._thread = threading.Thread(target=self._run, name="dashboard-feed", daemon=True)

    def start(self) -> None:
        """Connect; the outcome shows on the board."""
        self._thread.start()
        self._transport.open(self._inbox.put)

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._transport.close()
        self._inbox.put(None)
        self._thread.join(5)

    # -- steering ----------------------------------------------------------------------------------

    def ask(self, kind: str, **args: Any) -> Future[Reply]:
        """Send a request; the future holds the coordinator's reply, or TimeoutError. NoRights without rights."""
        if not self.rights:
            raise NoRights("this page may only look: start it with --control")
        message = {"id": secrets.token_hex(8), "operator": self._transport.identity, "kind": kind, "args": args}
        request = Request.model_validate(message)
        future: Future[Reply] = Future()
        with self.lock:
            self._waiting[request.id] = time.monotonic() + ANSWER, future
        self._transport.publish(self._topics.coordinator("request"), request.encode())
        return future

    def label(self, device: str, label: Label) -> None:
        """Tell a device which class an interval had. NoRights without rights."""
        if not self.rights:
            raise NoRights("this page may only look: start it with --control")
        self._transport.publish(self._topics.device(device, "label"), label.encode())

    # -- reading -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            batch = self._batch()
            if batch is None:
                return
            latest: dict[str, Received] = {}
            for event in batch:
                if isinstance(event, Received):
                    self.counts["messages"] += 1
                    if "/reply/" in event.topic:
                        self._reply(event)
                    else:
                        latest[event.topic] = event
                else:
                    self._connection(event)
            for event in latest.values():
                try:
                    self._read(event)
                except ProtocolError:
                    self.counts["refused"] += 1
                except (KeyError, TypeError, ValueError, AttributeError):
                    # A summary of another version: what it lacks is told in the log, the page goes on.
                    self.counts["refused"] += 1
                    log.warning("%s cannot be shown", event.topic, exc_info=self.counts["refused"] == 1)
            self._give_up()

    def _batch(self) -> list[Event] | None:
        """What arrived, after waiting for the first and then BATCH for more; None at the end."""
        try:
            first = take(self._inbox, 1.0)
        except queue.Empty:
            return []
        if first is None:
            return None
        batch: list[Event] = [first]
        if isinstance(first, Received) and "/reply/" not in first.topic:
            time.sleep(BATCH)
        while not self._inbox.empty():
            event = self._inbox.get()
            if event is None:
                return None
            batch.append(event)
        return batch

    def _connection(self, event: Event) -> None:
        with self.lock:
            if isinstance(event, Connected):
                t = self._topics
                topics = [
                    t.coordinator("round"),
                    t.coordinator("state"),
                    t.device("+", "telemetry"),
                    t.device("+", "report"),
                ]
                self._transport.subscribe(*topics, *([t.reply(self._transport.identity)] if self.rights else []))
                self.board.say(connection="")
            elif isinstance(event, (Lost, Stopped)):
                self.board.say(connection=event.reason or "lost")

    def _read(self, event: Received) -> None:
        levels = self._topics.parse(event.topic)
        if levels is None or not event.payload:
            return
        if levels == ("coordinator", "round"):
            summary = decode(RoundSummary, event.payload)
            fields = {**summary.fields, "round": summary.round, "epoch": summary.epoch, "phase": summary.phase}
            with self.lock:
                self.counts["summaries"] += 1
                self.board.take(fields)
        elif levels == ("coordinator", "state"):
            state = decode(CoordinatorState, event.payload)
            with self.lock:
                self.board.say(coordinator=state.online)
        elif len(levels) == 3 and levels[2] == "telemetry":
            said = decode(Telemetry, event.payload)
            with self.lock:
                self.board.hear(levels[1], said.time, said.values)

        elif len(levels) == 3 and levels[2] == "report":
            report = decode(Report, event.payload)
            if report.kind != "declined":  # that shows as the device's state
                values = ", ".join(f"{k} {v}" for k, v in report.values.items())[:200]
                with self.lock:
                    self.board.reported(levels[1], f"{report.kind}: {report.reason or 'done'} {values}".strip())

    def _reply(self, event: Received) -> None:
        try:
            reply = decode(Reply, event.payload)
        except ProtocolError:
            self.counts["refused"] += 1
            return
        with self.lock:
            _, future = self._waiting.pop(reply.id, (0.0, None))
        if future is not None:
            future.set_result(reply)

    def _give_up(self) -> None:
        now = time.monotonic()
        with self.lock:
            late = [id for id, (until, _) in self._waiting.items() if until < now]
            futures = [self._waiting.pop(id)[1] for id in late]
        for future in futures:
            future.set_exception(TimeoutError("the coordinator did not answer; is it running?"))
