"""What the coordinator says: assignments, answers, blocks and the summary, once what they rest upon is on disk.

What the broker cannot take now is made good later, by a repeat of what is retained or by the devices' own repeats.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from coordinator.events import Acknowledge, Action, Keep, Send
from coordinator.publisher import Publisher
from coordinator.refusals import Refusals
from coordinator.rounds import Rounds
from models.partition import Vector
from protocol.chunks import chunk_size
from protocol.errors import ProtocolError, TooLarge
from protocol.messages import Answer, Message, Order, Reply, RoundSummary
from protocol.topics import Topics
from protocol.transport import Transport

log = logging.getLogger("relief.coordinator")

SAY_EVERY = 0.25  # seconds between two summaries at least
LISTEN_AGAIN = 60.0  # seconds between two looks at all retained births, in case one got lost on its way here
REPEAT = 5.0  # seconds until what the broker did not take is said again


class Speaker:
    """Speaks over `control`, and over the publisher's bulk connection for blocks.

    `block` gives a block's present vector; `now` is the loop's clock; failures are told in `alarms`.
    """

    def __init__(
        self,
        topics: Topics,
        control: Transport,
        publisher: Publisher,
        core: Rounds,
        refusals: Refusals,
        block: Callable[[str], Vector],
        alarms: dict[str, str],
        now: Callable[[], float],
    ) -> None:
        self._topics, self._control, self._core = topics, control, core
        self._block, self._alarms, self._now = block, alarms, now
        self.publisher, self.refusals = publisher, refusals
        self._listen_at = inf
        self._say_at, self._said = inf, 0.0

    @property
    def due(self) -> float:
        """When there is something to say although nothing has happened."""
        return min(self._say_at, self._listen_at)

    # -- to devices and operators ------------------------------------------------------------------------

    def speak(self, one: Action | str) -> None:
        """Say what the core wants said; a string stands for the block of that name."""
        if isinstance(one, str):
            self._attempt(lambda: self.block(one))
        elif isinstance(one, Send):
            if one.assignment.round == self._core.round:  # it may have closed while the disk was full
                self._say(self._topics.device(one.device, "assignment"), one.assignment, one.expiry)
        elif isinstance(one, Acknowledge):
            self.answer(one)
        elif isinstance(one, Keep):
            self.reply(one.operator, Reply(id=one.request, ok=True))

    def answer(self, one: Acknowledge) -> None:
        """Tell a device what became of its update."""
        if one.accepted:
            self.refusals.accepted(one.device)
        elif not one.again:  # it is only asked to come back
            self.refusals.refuse(one.device, one.reason)
        answer = Answer(update=one.update, accepted=one.accepted, reason=one.reason, again=one.again)
        self._say(self._topics.device(one.device, "answer"), answer)

    def missing(self, device: str, update: str, chunks: list[int]) -> None:
        """Tell a device which chunks of its update have not come; none are named where nothing of it is here."""
        answer = Answer(update=update, accepted=False, again=True, resume=True, missing=chunks)
        self._say(self._topics.device(device, "answer"), answer)

    def block(self, name: str) -> None:
        """Publish a block's present version."""
        core = self._core
        self.publisher.block(name, core.versions[name], core.epoch, self._block(name), core.scales.get(name))

    def orders(self, orders: Mapping[str, Order]) -> None:
        """Pass an operator's orders on."""
        for device, order in orders.items():
            self._control.publish(self._topics.device(device, "order"), order.encode())

    def reply(self, operator: str, reply: Reply) -> None:
        """Answer an operator's request."""
        self._say(self._topics.reply(operator), reply)

    def _say(self, topic: str, message: Message, expiry: int | None = None) -> None:
        self._attempt(lambda: self._control.publish(topic, message.encode(), expiry=expiry))

    def _attempt(self, deed: Callable[[], None]) -> None:
        """Publish; where the broker is slower than we are, or takes less than it should, an alarm says so."""
        try:
            deed()
        except ProtocolError as error:
            self._alarms["broker"] = str(error)
            log.error("not said: %s", error)
            self._listen_at = min(self._listen_at, self._now() + REPEAT)

    # -- again -------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The control connection is up: the broker may have lost everything."""
        self._listen_at = self._now() + (REPEAT if "broker" in self._alarms else LISTEN_AGAIN)
        self._attempt(self.publisher.again_control)

    def bulk_connected(self, max_payload: int) -> None:
        """The bulk connection is up, to a broker that takes packets of so many bytes."""
        self.publisher.chunk_size = chunk_size(max_payload)
        self._attempt(self.publisher.again_bulk)

    def repeat(self) -> None:
        """Look at all retained births again, and say what was not taken before; nothing before its time."""
        if self._now() < self._listen_at:
            return
        self._listen_at = self._now() + LISTEN_AGAIN
        self._control.subscribe(self._topics.device("+", "status"))
        if self._alarms.pop("broker", ""):
            self._attempt(self.publisher.again_control)
            self._attempt(self.publisher.go_on)

    # -- the summary -------------------------------------------------------------------------------------

    def want(self, *, at_once: bool = False) -> None:
        """The summary has changed: say it soon, or in the next turn of the loop."""
        now = self._now()
        self._say_at = now if at_once else min(self._say_at, max(now, self._said + SAY_EVERY))

    @property
    def summary_due(self) -> bool:
        return self._now() >= self._say_at

    def summary(self, fields: dict[str, Any]) -> None:
        """Publish the summary."""
        self._say_at, self._said = inf, self._now()
        core = self._core
        message = RoundSummary(round=core.round, epoch=core.epoch, phase=core.phase.value, fields=fields)
        topic = self._topics.coordinator("round")
        try:
            self._control.publish(topic, message.encode(), retain=True)
        except TooLarge:  # a large fleet behind a broker of small packets: the figures without the devices
            self.refusals.counts["summary without devices"] += 1
            fields = {**fields, "devices": {}}
            with contextlib.suppress(ProtocolError):
                self._control.publish(topic, message.model_copy(update={"fields": fields}).encode(), retain=True)
        except ProtocolError:  # the next one comes in a moment
            self.refusals.counts["summaries left out"] += 1
