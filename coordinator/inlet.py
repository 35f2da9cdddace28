"""What arrives at the coordinator: messages are decoded, checked at the edge, and become events of the round core.

Nothing that a device or an operator sends gets past here unless it has the right form; what has not is refused and
counted, and ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.defence import Defence
from coordinator.events import Acknowledge, Declined, Event, StatusArrived, UpdateArrived, UpdateHead, Wish
from coordinator.intake import check
from coordinator.orders import unheard
from coordinator.refusals import OPERATOR
from coordinator.releases import KINDS, Releases
from coordinator.rounds import Rounds
from coordinator.speaker import Speaker
from models.partition import Partition
from protocol import broker_metrics
from protocol.chunks import Reassembly
from protocol.errors import ProtocolError
from protocol.messages import RESUME, Chunk, Reply, Report, Request, Status, Update, decode
from protocol.topics import Topics
from protocol.transport import Received

DEVICE_WISHES = ("quarantine", "release")
WISHES = ("pause", "resume", *DEVICE_WISHES)  # what operators may ask of the rounds
CAN = (*WISHES, *KINDS, "versions")  # all that operators may ask for
LONGEST_REASON = 200  # characters: it is said again in every summary


class Inlet:
    """Takes messages, gives events to `feed`. The tensors of updates wait here until they are journalled.

    `core` is only looked at: who was asked for what, and who is there.
    """

    def __init__(
        self,
        topics: Topics,
        cut: Partition,
        core: Rounds,
        defence: Defence,
        speaker: Speaker,
        releases: Releases,
        feed: Callable[[Event], None],
    ) -> None:
        self._topics, self.cut, self._core, self._defence = topics, cut, core, defence
        self._speaker, self._releases, self._feed = speaker, releases, feed
        self._reassembly: dict[str, Reassembly] = {}
        self._waiting: dict[str, Update] = {}  # id, which names its device -> taken by the core, not yet journalled
        self.broker = broker_metrics.BrokerMetrics()
        self.bytes_up = 0

    @property
    def control(self) -> tuple[str, ...]:
        """Topics to hear on the control connection."""
        device = self._topics.device
        return device("+", "status"), device("+", "report"), self._topics.coordinator("request")

    @property
    def bulk(self) -> tuple[str, ...]:
        """Topics to hear on the bulk connection."""
        return (self._topics.device("+", "update"),)

    def received(self, event: Received) -> None:
        """Take one message, whatever it is."""
        if self.broker.take(event.topic, event.payload):
            return
        levels = self._topics.parse(event.topic)
        if levels is None or not event.payload:
            return
        who = levels[1] if levels[0] == "device" else OPERATOR
        try:
            if levels[0] == "device" and len(levels) == 3:
                self._from_device(who, levels[2], event.payload)
            elif levels == ("coordinator", "request"):
                self._request(decode(Request, event.payload))
        except ProtocolError as error:
            self._speaker.refusals.refuse(who, f"{levels[-1]} refused: {error}")

    def _from_device(self, device: str, leaf: str, payload: bytes) -> None:
        if leaf == "status":
            self._feed(StatusArrived(device, decode(Status, payload)))
        elif leaf == "update":
            self.bytes_up += len(payload)
            limit = 16 * sum(self.cut.size(block) for block in self.cut.blocks) + 65536
            parts = self._reassembly.setdefault(device, Reassembly(max_bytes=limit))
            whole = parts.add(decode(Chunk, payload))
            if whole is not None:
                self._update(device, decode(Update, whole))
        elif leaf == "report":
            report = decode(Report, payload)
            if report.kind == "declined":
                self._feed(Declined(device, report.id, report.reason))
            elif report.kind == RESUME:
                self._resume(device, report)

    def _update(self, device: str, update: Update) -> None:
        asked = self._core.asked(device, update.assignment) is not None
        reason = check(update, device, self.cut) or self._defence.judge(update, asked=asked)
        if reason:
            self._speaker.answer(Acknowledge(device, update.id, False, reason))
            return
        if update.id in self._core.storing:
            return  # answered once it is on disk, and with the content that came first
        self._waiting[update.id] = update
        self._feed(UpdateArrived(UpdateHead.of(update)))
        if update.id not in self._core.storing:
            del self._waiting[update.id]

    def _resume(self, device: str, report: Report) -> None:
        """A device was cut off while it sent an update: only what has not come needs to travel."""
        if report.id in self._core.storing:
            return  # answered once it is on disk
        if any(head and head.id == report.id for head in (self._core.stored.get(device), self._core.done.get(device))):
            self._speaker.answer(Acknowledge(device, report.id, True))
            return
        parts, chunks = self._reassembly.get(device), report.values.get("chunks")
        self._speaker.missing(device, report.id, parts.missing(report.id, chunks) if parts else [])

    def tensors(self, update: str) -> Update:
        """Hand over the update of this id that the core wants stored."""
        return self._waiting.pop(update)

    def _request(self, request: Request) -> None:
        if request.kind in WISHES:
            self._wish(request)
        elif request.kind in KINDS:
            orders, told = self._releases.passed_on(request, self._core.registry.devices)
            self._speaker.orders(orders)
            self._speaker.reply(request.operator, told)
        else:
            told = Reply(id=request.id, ok=True, values={"versions": self._releases.versions.table()})
            self._speaker.reply(request.operator, told)

    def _wish(self, request: Request) -> None:
        """Hand a wish to the core, which has it answered once it is on disk; what names no device is refused here."""
        device, registry = request.args.get("device", ""), self._core.registry
        if request.kind in DEVICE_WISHES:
            # Who is held is known, even where its birth has not come since a restart.
            known = {*registry.devices, *registry.quarantined}
            named = isinstance(device, str) and device
            reason = unheard([device], known) if named else "device is no name"
            if reason:
                self._speaker.reply(request.operator, Reply(id=request.id, ok=False, reason=reason))
                return
        if request.kind == "release":
            self._speaker.refusals.released(device)
        why = str(request.args.get("reason", ""))[:LONGEST_REASON]
        self._feed(Wish(request.kind, device, why, request.operator, request.id))
