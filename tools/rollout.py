"""Something new for a fleet, wave by wave: a few devices first, more when those are well, back when they are not."""

from __future__ import annotations

import math
import queue
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.errors import ProtocolError
from protocol.messages import Reply, Report, Request, Status, decode
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received, Stopped, Transport
from protocol.waiting import take

SETTLE = 2.0  # seconds in which all retained births arrive
ANSWER = 15.0  # seconds that the coordinator may take to answer


class RolloutFailed(ValueError):
    """A wave was not well; the text says which devices, why, and what became of them."""


def waves(devices: Iterable[str], canary: int, then: str) -> list[list[str]]:
    """`canary` devices first, then so many at a time: "25%" of all, or a number. ValueError for what is neither."""
    left = sorted(devices)
    try:
        share = float(then.removesuffix("%"))
        step = math.ceil(len(left) * share / 100) if then.endswith("%") else int(then)
    except ValueError:
        step = 0
    if (step < 1 and left) or canary < 1:
        raise ValueError(f"--canary {canary} --then {then}: write a number of devices, or a percentage as 25%")
    planned = [left[:canary]] if left else []
    planned += [left[n : n + step] for n in range(canary, len(left), step)] if left else []
    return planned


@dataclass
class Seen:
    """What a device has said of itself since we began to listen."""

    status: Status
    reports: dict[str, Report] = field(default_factory=dict)  # order -> its report, of orders that were ours


@dataclass
class Rollout(ABC):
    """Listens to a fleet and changes it through its coordinator. What is new, and how it shows, subclasses say.

    patience    seconds that a wave may take
    watch       seconds that it must stay well before the next one
    """

    fleet: str
    transport: Transport
    identity: str
    patience: float = 900.0
    watch: float = 30.0
    say: Callable[[str], None] = print
    devices: dict[str, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._topics = Topics(self.fleet)
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._replies: dict[str, Reply] = {}
        self._ordered: set[str] = set()

    @abstractmethod
    def give(self, wave: list[str]) -> dict[str, str]:
        """Give it to these devices and watch them: why they are not well, empty if all are."""

    @abstractmethod
    def take_back(self, wave: list[str]) -> list[str]:
        """Have these devices return to what they had; those that had anything new to return from."""

    @abstractmethod
    def told(self) -> str:
        """What a wave that is well does: "run 0.2.0"."""

    def open(self) -> None:
        """Connect and hear who is there. ValueError where the broker refuses us."""
        self.transport.open(self._inbox.put)
        self.until(lambda: False, SETTLE)

    def run(self, planned: list[list[str]]) -> None:
        """Go wave by wave. RolloutFailed where a wave is not well; that wave is back on what it had before."""
        for number, wave in enumerate(planned, 1):
            name = "canary" if number == 1 else f"wave {number}"
            self.say(f"{name}: {', '.join(wave)}")
            began = time.monotonic()
            bad = self.give(wave)
            if bad:
                if back := self.take_back(wave):
                    self.say(f"{name}: back with {', '.join(back)}")
                told = "; ".join(f"{device}: {why}" for device, why in bad.items())
                raise RolloutFailed(f"{name} was not well, nothing more is updated: {told}")
            self.say(f"{name}: {len(wave)} of {len(wave)} {self.told()} after {time.monotonic() - began:.0f} s")

    def request(self, kind: str, args: Mapping[str, Any]) -> Reply:
        """Ask the coordinator for something. RolloutFailed where it refuses or does not answer."""
        plain = {"id": secrets.token_hex(8), "operator": self.identity, "kind": kind, "args": dict(args)}
        asked = Request.model_validate(plain)
        self._ordered.add(asked.id)
        self.transport.publish(self._topics.coordinator("request"), asked.encode())
        self.until(lambda: asked.id in self._replies, ANSWER)
        reply = self._replies.get(asked.id)
        if reply is None:
            raise RolloutFailed("the coordinator did not answer; is it running, and of this version?")
        if not reply.ok:
            raise RolloutFailed(f"the coordinator refuses: {reply.reason}")
        return reply

    def order(self, devices: list[str], kind: str, args: Mapping[str, Any]) -> str:
        """Have the coordinator order something of devices; the order's id, which their reports carry."""
        return self.request("order", {"devices": devices, "order": kind, "args": dict(args)}).id

    def reports(self, devices: Iterable[str], order: str) -> dict[str, Report]:
        """What has been reported on an order so far."""
        found = {device: self.devices[device].reports.get(order) for device in devices}
        return {device: report for device, report in found.items() if report is not None}

    def until(self, done: Callable[[], bool], patience: float) -> None:
        """Listen until `done`, for at most `patience` seconds."""
        end = time.monotonic() + patience
        while not done() and (left := end - time.monotonic()) > 0:
            try:
                self._hear(take(self._inbox, left))
            except queue.Empty:
                return

    def _hear(self, event: Event) -> None:
        if isinstance(event, Connected):
            device = self._topics.device
            self.transport.subscribe(device("+", "status"), device("+", "report"), self._topics.reply(self.identity))
        elif isinstance(event, Stopped):
            raise ValueError(event.reason)
        elif isinstance(event, Received) and event.payload:
            try:
                self._message(self._topics.parse(event.topic) or (), event.payload)
            except ProtocolError as error:
                self.say(f"{event.topic}: {error}")

    def _message(self, levels: tuple[str, ...], payload: bytes) -> None:
        if levels[:2] == ("coordinator", "reply"):
            reply = decode(Reply, payload)
            self._replies[reply.id] = reply
        elif len(levels) == 3 and levels[2] == "status":
            status = decode(Status, payload)
            self.devices.setdefault(levels[1], Seen(status)).status = status
        elif len(levels) == 3 and levels[2] == "report" and levels[1] in self.devices:
            report = decode(Report, payload)
            if report.id in self._ordered:
                self.devices[levels[1]].reports[report.id] = report


def known(devices: Mapping[str, Seen], only: Iterable[str]) -> list[str]:
    """The devices meant: `only`, or all. ValueError where one of them was never heard of."""
    unknown = sorted(set(only) - set(devices))
    if unknown:
        raise ValueError(f"no device of this fleet: {', '.join(unknown)}")
    return sorted(set(only) or set(devices))
