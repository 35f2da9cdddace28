"""The invariants, checked after every step against what is on disk, what was said and a reference of our own.

1  an update counts at most once, and only in its round; where rounds are buffered, at most `staleness` rounds later
2  a committed round survives: every life goes on from it, with the same bits
3  versions only grow, and a version never means two different contents
4  every block equals the reference aggregation of exactly the updates that the journal names
5  no device is assigned what it does not own, or more than its budget
6  rounds always end
7  nothing is said that is not on disk: assignments, versions, and above all "accepted"
8  what was accepted is in its round's commit, with the very bytes that the device sent
9  a device trains only from the versions that it was told, and one assignment at a time
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.events import Open
from coordinator.journal import Record
from coordinator.ledger import Resumed
from coordinator.rounds import Phase
from coordinator.service import Coordinator
from device_runtime.events import StartTraining
from models.local import effective_steps
from models.partition import Vector
from models.spec import SHARED
from protocol.messages import Answer, Assignment, Manifest, Status, Update, decode
from protocol.topics import Topics

if TYPE_CHECKING:
    from tests.faults.world import World

OVERDUE = 1.0  # seconds that a round may outlast its deadline while the disk takes what it is given


class Violation(AssertionError):
    """An invariant does not hold."""


def digest(vector: Vector) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(vector).tobytes()).digest()


class Check:
    """What is known to be true, from outside the parties."""

    def __init__(self, world: World, blocks: Mapping[str, Vector]) -> None:
        self.world = world
        self.topics = Topics("sim")
        self.blocks = dict(blocks)  # as of the last commit on disk
        self.versions = dict.fromkeys(blocks, 0)
        self.contents = {(block, 0): digest(vector) for block, vector in blocks.items()}  # (block, version) -> digest
        self.epochs: set[int] = set()  # of the runs that were begun
        self.round = 0  # last committed
        self.plans: dict[int, list[dict[str, Assignment]]] = defaultdict(list)
        self.opened: dict[int, dict[str, Assignment]] = {}
        self.updates: dict[int, dict[str, tuple[str, Record, bytes]]] = defaultdict(dict)  # round -> device -> ...
        self.counted: set[tuple[str, str]] = set()  # (device, update id) in any commit
        self.answered: dict[tuple[str, str], int] = {}  # (device, assignment) -> journal position of its update
        self.latest: dict[str, int] = {}  # device -> last round that counted an update of it
        self.accepted: dict[int, set[tuple[str, str]]] = defaultdict(set)
        self.sent: dict[tuple[str, str], Update] = {}  # (device, id): what honest devices trained
        self.births: dict[str, list[Status]] = defaultdict(list)
        self.complete: list[bool] = []  # of each round: every honest device is known, and all that were asked took part
        self.checks = 0
        self._seen = 0  # last journal position that was looked at

    def hold(self, true: bool, invariant: int, what: str) -> None:
        self.checks += 1
        if not true:
            raise Violation(f"invariant {invariant}: {what}")

    # -- the journal -----------------------------------------------------------------------------------

    def durable(self, life: Coordinator, blocks: Mapping[str, Vector], *, torn: bool = False) -> None:
        """Everything in the journal is on disk now, and these are the blocks that it led to.

        `torn`: a crash may have left the end of a batch without its beginning, which then counts for nothing.
        """
        for record in life.ledger.journal.records(self._seen + 1):
            self._seen = record.position
            if torn and record.kind == "open" and record.header["round"] > self.round + 1:
                continue
            if torn and record.kind == "update" and record.header["into"] not in self.opened:
                continue
            if record.kind == "run":
                self.epochs.add(record.header["epoch"])
                self.hold(len(self.epochs) == 1, 2, f"the run was begun anew: epochs {self.epochs}")
            elif record.kind == "open":
                self._open(record.header)
            elif record.kind == "update":
                self._update(life, record)
            elif record.kind == "commit":
                self._commit(life, record.header, blocks)

    def planned(self, life: Coordinator, action: Open) -> None:
        """The core has decided on a round's assignments, knowing what it now knows of the devices."""
        registry = life.core.registry
        self.plans[action.round].append(dict(action.assignments))
        for device, a in action.assignments.items():
            known = registry.devices[device].status
            told = any(
                (b.boot, b.modalities, b.windows) == (known.boot, known.modalities, known.windows)
                for b in self.births[device]
            )
            self.hold(told, 5, f"{device} never said what it was given an assignment for")
            foreign = {b for b, steps in a.steps.items() if steps} - {SHARED, *known.modalities}
            self.hold(not foreign, 5, f"{device} owns {sorted(known.modalities)} and is to train {sorted(foreign)}")
            cost = life.strategy.work(registry.member(device))
            if a.seconds:
                self.hold(cost.seconds(a.steps) <= a.seconds * (1 + 1e-6), 5, f"{device}: more seconds than its budget")
            if a.joules:
                self.hold(cost.joules(a.steps) <= a.joules * (1 + 1e-6), 5, f"{device}: more joules than its budget")

    def _open(self, header: Mapping[str, Any]) -> None:
        round = header["round"]
        self.hold(round == self.round + 1, 2, f"round {round} begins after round {self.round}")
        self.hold(round not in self.opened, 1, f"round {round} begins twice")
        self.opened[round] = {d: Assignment.model_validate(a) for d, a in header["assignments"].items()}
        self.hold(self.opened[round] in self.plans[round], 5, f"round {round} begins with assignments nobody planned")
        for block, version in header["versions"].items():  # the same content, normalised anew
            self.hold(
                version == self.versions[block] + 1, 3, f"{block}: version {version} after {self.versions[block]}"
            )
            self.contents[block, version] = self.contents[block, self.versions[block]]
            self.versions[block] = version
        for device, plain in header["late"].items():
            old = Assignment.model_validate(plain)
            self.hold(self.opened[old.round][device] == old, 1, f"{device}: {old.id} is not what it was asked")
            self.hold((device, old.id) not in self.answered, 1, f"{device}: {old.id} is answered and stays open")
        for device, a in self.opened[round].items():
            for block, version in a.versions.items():
                self.hold(version == self.versions[block], 3, f"{device} is to begin from {block} {version}")

    def _update(self, life: Coordinator, record: Record) -> None:
        head = record.header["head"]
        round, device, id = record.header["into"], head["device"], head["id"]
        self.hold(round == self.round + 1 and round in self.opened, 1, f"{device}'s update is stored for round {round}")
        late = round - head["round"]
        self.hold(0 <= late <= self.world.pace.staleness, 1, f"{device}'s update counts {late} rounds late")
        before = self.answered.setdefault((device, head["assignment"]), record.position)
        self.hold(before == record.position, 1, f"{device}: {head['assignment']} has two updates")
        self.hold(device not in self.updates[round], 1, f"{device} has two updates in round {round}")
        body = life.ledger.journal.read(record.position)
        self.updates[round][device] = (id, record, body)
        a = self.opened[head["round"]].get(device)
        self.hold(a is not None, 1, f"{device} has no assignment in round {head['round']} and an update is stored")
        assert a is not None
        foreign = set(head["blocks"]) - set(a.steps)
        self.hold(not foreign, 5, f"{device}'s update touches {sorted(foreign)}, which it was not assigned")
        for block, (version, steps) in head["blocks"].items():
            self.hold(version == a.versions[block], 9, f"{device}, block {block}: trained from version {version}")
            self.hold(1 <= steps <= a.steps[block], 5, f"{device}, block {block}: {steps} steps of {a.steps[block]}")
        if device in self.world.honest:
            sent = self.sent.get((device, id))
            self.hold(sent is not None, 8, f"{device} never made the update {id}")
            assert sent is not None
            for block, (start, size, _, _) in record.header["layout"].items():
                same = bytes(sent.blocks[block].delta.data) == body[start : start + size]
                self.hold(same, 8, f"{device}, block {block}: the journal holds other bytes than were sent")

    def _commit(self, life: Coordinator, header: Mapping[str, Any], blocks: Mapping[str, Vector]) -> None:
        round, named = header["round"], list(header["updates"])
        stored = self.updates[round]
        self.hold(round == self.round + 1, 2, f"round {round} is committed after round {self.round}")
        self.hold(len(set(named)) == len(named), 1, f"round {round} counts an update twice")
        by_id = {id: (device, record, body) for device, (id, record, body) in stored.items()}
        self.hold(set(named) <= set(by_id), 1, f"round {round} counts an update that is not of this round")
        for id in named:
            key = (by_id[id][0], id)
            self.hold(key not in self.counted, 1, f"{key} counts a second time")
            self.counted.add(key)
            self.latest[key[0]] = round
            if by_id[id][1].header["head"]["round"] < round:
                self.world.count("update folded in late")
        missing = self.accepted[round] - {(by_id[id][0], id) for id in named}
        self.hold(not missing, 8, f"round {round} lacks updates that were accepted: {sorted(missing)}")
        self._compare(life, blocks, round, [by_id[id] for id in sorted(named, key=lambda id: by_id[id][0])])
        for block, version in header["versions"].items():
            self.hold(
                version == self.versions[block] + 1, 3, f"{block}: version {version} after {self.versions[block]}"
            )
            self.versions[block] = version
            self.blocks[block] = blocks[block]
            self.hold(digest(blocks[block]) == header["digests"][block], 4, f"{block}: digest of the commit")
            self.contents[block, version] = header["digests"][block]
        self.round = round
        here, asked = {by_id[id][0] for id in named}, self.world.honest & set(self.opened[round])
        if (
            self.world.pace.staleness
        ):  # nobody waits for everybody: who was asked since the last fault has counted since
            later = range(self.world.rounds_at_calm + 1, round + 1)
            asked = self.world.honest & {d for r in later for d in self.opened[r]}
            here = {d for d, r in self.latest.items() if r in later}
        self.complete.append(bool(asked) and self.world.honest <= set(life.core.registry.ready()) and asked <= here)

    def _compare(
        self, life: Coordinator, blocks: Mapping[str, Vector], round: int, used: list[tuple[str, Record, bytes]]
    ) -> None:
        """Delta_m = tau sum p_i Delta_i / a_i, written down once more and plainly."""
        momentum = life.strategy.local().momentum
        for block, before in self.blocks.items():
            trained = [(r.header["head"], r.header["layout"][block], body) for _, r, body in used
                       if block in r.header["head"]["blocks"]]  # fmt: skip
            expected = before.astype(np.float64)
            if trained:
                samples = [head["samples"] for head, _, _ in trained]
                steps = [effective_steps(head["blocks"][block][1], momentum) for head, _, _ in trained]
                tau = sum(n * a for n, a in zip(samples, steps, strict=True)) / sum(samples)
                for n, a, (head, (start, size, dtype, _), body) in zip(samples, steps, trained, strict=True):
                    delta = np.frombuffer(body[start : start + size], dtype).astype(np.float64)
                    delta = delta / np.sqrt(1 + self.versions[block] - head["blocks"][block][0])
                    expected = expected + tau * n / sum(samples) * delta / a
            close = np.allclose(blocks[block], expected, rtol=1e-5, atol=1e-6)
            self.hold(close, 4, f"round {round}, block {block}: not the aggregation of the updates named")

    # -- the coordinator -------------------------------------------------------------------------------

    def resumed(self, life: Coordinator, at: Resumed) -> None:
        """A new life has read its past and has said nothing yet."""
        self.durable(life, at.blocks, torn=True)
        self.hold(at.round == self.round + 1, 2, f"resumed at round {at.round}, committed was {self.round}")
        for block, vector in self.blocks.items():
            self.hold(digest(at.blocks[block]) == digest(vector), 2, f"block {block} has other bits after a restart")
        self.hold(at.versions == self.versions, 3, f"versions {at.versions} after a restart, were {self.versions}")
        kept = {device: head.id for device, head in at.stored.items()}
        on_disk = {device: id for device, (id, _, _) in self.updates[at.round].items()}
        self.hold(kept == on_disk, 2, f"round {at.round} goes on with {kept}, on disk are {on_disk}")

    def stepped(self, life: Coordinator) -> None:
        """The loop has turned once."""
        core = life.core
        if core.round == self.round + 1:
            for block, vector in self.blocks.items():
                same = life.blocks[block] is vector or life.blocks[block].tobytes() == vector.tobytes()
                self.hold(same, 4, f"block {block} changed between commits")
        if core.phase is Phase.TRAINING and not life.alarms.get("disk"):
            late = life._now() - core.deadline
            self.hold(late < OVERDUE, 6, f"round {core.round} is {late:.1f} s over its deadline")
        for device, head in core.stored.items():
            right = head.device == device and core.round - head.round <= core.pace.staleness
            self.hold(right, 1, f"{device} holds an update of another")

    def ended(self, life: Coordinator) -> None:
        self.hold(life.core.versions == self.versions, 3, "versions at the end are not those of the last commit")

    def said(self, topic: str, payload: bytes, retain: bool) -> None:
        """The coordinator is about to publish."""
        levels = self.topics.parse(topic)
        assert levels is not None
        if levels[-1] == "manifest":
            m = decode(Manifest, payload)
            if not m.block.endswith(".base"):
                self.hold(m.version == self.versions[m.block], 7, f"{m.block} {m.version} said, not committed")
                self.hold(m.digest == self.contents[m.block, m.version], 3, f"{m.block}: other content")
        elif levels[-1] == "assignment":
            a = decode(Assignment, payload)
            kept = self.opened.get(a.round, {}).get(levels[1])
            self.hold(kept is not None and kept.steps == a.steps, 7, f"{levels[1]}: assignment is not on disk")
            self.hold(a.round > self.round, 6, f"{levels[1]}: an assignment of the committed round {a.round}")
        elif levels[-1] == "answer":
            answer = decode(Answer, payload)
            if answer.accepted:
                where = [r for r, stored in self.updates.items() if stored.get(levels[1], ("",))[0] == answer.update]
                self.hold(len(where) == 1, 7, f"{levels[1]}: {answer.update} is accepted and not on disk")
                self.accepted[where[0]].add((levels[1], answer.update))
                late = where[0] <= self.round and (levels[1], answer.update) not in self.counted
                self.hold(
                    not late, 8, f"{levels[1]}: {answer.update} is accepted after its round was committed without"
                )

    # -- devices ---------------------------------------------------------------------------------------

    def born(self, device: str, status: Status) -> None:
        self.births[device].append(status)

    def kept(self, device: str, outbox: set[str], backlog: Container[str]) -> None:
        """A device has carried out what its agent wanted."""
        lost = {update for update in outbox if update not in backlog}
        self.hold(not lost, 10, f"{device} has {sorted(lost)} in its outbox and will not send them")

    def trained(self, update: Update) -> None:
        self.sent[update.device, update.id] = update

    def started(self, device: str, start: StartTraining, now: float) -> None:
        a = start.assignment
        for block, steps in a.steps.items():
            if steps:
                owned = block == SHARED or block in start.present
                self.hold(owned, 5, f"{device} trains {block}, which it does not have")
        for block, version in a.versions.items():
            if block in start.blocks:
                right = hashlib.sha256(start.blocks[block].data).digest() == self.contents[block, version]
                self.hold(right, 9, f"{device} trains {block} from other content than version {version}")
