"""The coordinator's record of itself: rounds, updates and commits in the journal, and how to continue from them.

Record kinds: `run` (a model lineage begins), `open` (a round and its assignments), `update` (head, and the deltas as
body), `commit` (which updates became which versions), `wish` (what operators want of the rounds from there on). A
commit is replayed by folding its updates again, so blocks are written only now and then, as checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.checkpoint import Checkpoint, latest, save
from coordinator.commit import Commit, fold_round
from coordinator.events import Keep, Open, UpdateHead
from coordinator.journal import Journal, Record
from coordinator.lateness import unanswered
from coordinator.strategies.base import Strategy
from models.partition import Vector
from models.spec import ModelSpec
from protocol.messages import Assignment, Tensor, Update

CHECKPOINT_EVERY = 10  # commits


class CannotResume(Exception):
    """A run folder that does not belong to this configuration, or whose record contradicts itself."""


@dataclass
class Resumed:
    """Where a run stands: what `Rounds` and the service need to continue."""

    begun: bool = False
    epoch: int = 1
    round: int = 1
    blocks: dict[str, Vector] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    scales: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    scaled: dict[str, int] = field(default_factory=dict)  # modality -> samples behind its scale
    assignments: dict[str, Assignment] = field(default_factory=dict)
    stored: dict[str, UpdateHead] = field(default_factory=dict)
    done: dict[str, UpdateHead] = field(default_factory=dict)
    late: dict[str, Assignment] = field(default_factory=dict)  # of closed rounds, not answered
    lengths: dict[str, float] = field(default_factory=dict)  # block -> what its norm bound rests upon
    opened: bool = False  # whether `round` has begun
    paused: bool = False
    held: dict[str, str] = field(default_factory=dict)  # device -> reason, of those that operators hold
    said: str = ""


class Ledger:
    """One run folder: `journal/` and `checkpoints/`."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder, self.spec = folder, spec
        self.journal = Journal.open(folder / "journal")
        self._at: dict[str, int] = {}  # update id -> journal position
        self._layout: dict[str, dict[str, list[Any]]] = {}  # update id -> block -> [start, size, dtype, scale]
        self._since_checkpoint = 0
        self.mended: list[int] = []  # rounds whose updates were lost, taken from their commits when resuming
        self._checkpointed = 1  # first round that is not in the newest checkpoint
        self._kept_from = 1  # first round that is not in the one before it

    # -- writing -----------------------------------------------------------------------------------

    def begin(self, epoch: int) -> None:
        self.journal.append("run", {"epoch": epoch, "spec": self.spec.to_dict()})

    def open(self, action: Open) -> None:
        self.journal.append(
            "open",
            {
                "round": action.round,
                "epoch": action.epoch,
                "assignments": {d: a.model_dump() for d, a in action.assignments.items()},
                "scales": {m: [center, width] for m, (center, width) in action.normalisation.items()},
                "versions": action.versions,
                "counts": action.counts,
                "late": {d: a.model_dump() for d, a in action.late.items()},
            },
        )

    def update(self, head: UpdateHead, update: Update, round: int) -> None:
        """Journal an update to be folded into `round`: its head, and its deltas one behind the other as body."""
        layout, parts, start = {}, [], 0
        for block, work in update.blocks.items():
            raw = work.delta.data
            layout[block] = [start, len(raw), work.delta.dtype, work.delta.scale]
            parts.append(raw)
            start += len(raw)
        header = {"head": head.to_dict(), "layout": layout, "into": round}
        self._at[head.id] = self.journal.append("update", header, b"".join(parts))
        self._layout[head.id] = layout

    def commit(self, round: int, epoch: int, updates: Sequence[str], done: Commit) -> None:
        digests = {block: digest(vector) for block, vector in done.blocks.items()}
        layout, parts, start = {}, [], 0
        for block, vector in done.blocks.items():
            layout[block] = [start, vector.nbytes, vector.dtype.str]
            parts.append(np.ascontiguousarray(vector).tobytes())
            start += vector.nbytes
        header = {"round": round, "epoch": epoch, "updates": list(updates), "versions": done.versions}
        self.journal.append("commit", {**header, "digests": digests, "layout": layout}, b"".join(parts))

    def wish(self, action: Keep) -> None:
        """Journal all that operators want: the last record of it stands."""
        self.journal.append("wish", {"round": action.round, "paused": action.paused, "held": action.held})

    def delta(self, head: UpdateHead, block: str) -> Vector:
        """One block of one journalled update."""
        start, size, dtype, scale = self._layout[head.id][block]
        raw = self.journal.read(self._at[head.id], start, size)
        return Tensor(dtype=dtype, data=raw, scale=scale).array()

    def forget(self, updates: Sequence[str]) -> None:
        """Drop the index of updates whose round is closed; the journal keeps them until it is compacted."""
        for id in updates:
            self._at.pop(id, None)
            self._layout.pop(id, None)

    def checkpoint(
        self, resumed: Resumed, strategy: Strategy, base: Mapping[str, Vector], *, force: bool = False
    ) -> Path | None:
        """Write the blocks every CHECKPOINT_EVERY calls or by `force`, then drop what the journal needs no longer."""
        self._since_checkpoint += 1
        if not force and self._since_checkpoint < CHECKPOINT_EVERY:
            return None
        self._since_checkpoint = 0
        meta = {
            "epoch": resumed.epoch,
            "round": resumed.round,
            "versions": resumed.versions,
            "scales": {m: [center, width] for m, (center, width) in resumed.scales.items()},
            "scaled": resumed.scaled,
            "strategy": {"name": strategy.name, "state": strategy.state()},
            "done": {d: head.to_dict() for d, head in resumed.done.items()},
            "late": {d: a.model_dump() for d, a in resumed.late.items()},
            "lengths": resumed.lengths,
            "paused": resumed.paused,
            "held": resumed.held,
        }
        written = save(
            self.folder / "checkpoints", resumed.round - 1, dict(resumed.blocks), self.spec, meta, base=dict(base)
        )
        # What the checkpoint before this one needs is kept, in case this one turns out to be damaged; the run record
        # stays too, so that the folder explains itself.
        if resumed.round > self._checkpointed:  # the same round again, as where a run ends, drops no more
            self._kept_from, self._checkpointed = self._checkpointed, resumed.round
        self.journal.compact(lambda r: r.kind == "run" or _round_of(r.header) >= self._kept_from)
        return written

    # -- resuming ----------------------------------------------------------------------------------

    def resume(self, strategy: Strategy, blocks: dict[str, Vector]) -> Resumed:
        """Read the run so far. `blocks` is where a run without a checkpoint starts from.

        Raises CannotResume where the folder belongs to another model or a replayed commit gives other bits.
        """
        at = Resumed(blocks=dict(blocks), versions=dict.fromkeys(blocks, 0))
        saved = latest(self.folder / "checkpoints")
        if saved is not None:
            self._from_checkpoint(at, saved, strategy)
            self._checkpointed = at.round
        passed_over = saved.passed_over if saved else ()
        heads: dict[str, UpdateHead] = {}
        for record in self.journal.records():
            header = record.header
            if record.kind == "run":
                self._check_spec(header["spec"])
                at.begun, at.epoch = True, max(at.epoch, int(header["epoch"]))
            elif record.kind == "wish":
                # By the checkpoint's round: a wish that comes while a round is folded is journalled behind its commit.
                if _round_of(header) >= self._checkpointed:
                    at.paused, at.held = bool(header["paused"]), dict(header["held"])
            elif _round_of(header) < at.round:
                continue
            elif record.kind != "commit" and _round_of(header) > at.round:
                # Written in one batch with the commit before it, of which a crash left only this: it never happened.
                continue
            elif record.kind == "open":
                at.assignments = _assignments(header["assignments"])
                at.scales.update({m: (c, w) for m, (c, w) in header["scales"].items()})
                at.scaled.update({m: int(n) for m, n in header.get("counts", {}).items()})
                at.versions.update({m: int(v) for m, v in header["versions"].items()})
                at.late = _assignments(header.get("late", {}))
                at.stored, at.opened = {}, True
                # The plan itself is not replayed, only what it led to; a strategy that draws does so by round.
            elif record.kind == "update":
                if not at.opened:
                    continue  # a crash left it without its round's opening: nobody was told of either
                head = UpdateHead.from_dict(header["head"])
                heads[head.id] = head
                self._at[head.id], self._layout[head.id] = record.position, header["layout"]
                at.stored[head.device] = head
            elif record.kind == "commit":
                self._replay(at, record, heads, strategy)
        at.said = "; ".join([str(self.journal.recovered), *(f"passed over: {why}" for why in passed_over)])
        if self.mended:
            at.said += f"; rounds {self.mended} taken from their commits: updates are lost or fold otherwise"
        at.said += f"; round {at.round} with {len(at.stored)} of {len(at.assignments)} updates"
        if at.paused:
            at.said += "; paused by an operator"
        if at.held:
            at.said += f"; held by an operator: {', '.join(at.held)}"
        return at

    def _from_checkpoint(self, at: Resumed, saved: Checkpoint, strategy: Strategy) -> None:
        meta = saved.meta
        self._check_spec(saved.spec.to_dict())
        at.begun, at.epoch = True, int(meta["epoch"])
        at.round, at.blocks = int(meta["round"]), dict(saved.blocks)
        at.versions = {block: int(v) for block, v in meta["versions"].items()}
        at.scales = {m: (c, w) for m, (c, w) in meta["scales"].items()}
        at.scaled = {m: int(n) for m, n in meta.get("scaled", {}).items()}
        at.done = {d: UpdateHead.from_dict(h) for d, h in meta["done"].items()}
        at.late = _assignments(meta.get("late", {}))
        at.lengths = {block: float(length) for block, length in meta.get("lengths", {}).items()}
        at.paused, at.held = bool(meta.get("paused", False)), dict(meta.get("held", {}))
        if meta["strategy"]["name"] != strategy.name:
            raise CannotResume(
                f"{self.folder}: the run was made with strategy {meta['strategy']['name']!r}, the configuration says "
                f"{strategy.name!r}; use that one, or another folder"
            )
        strategy.restore(meta["strategy"]["state"])

    def _check_spec(self, plain: dict[str, Any]) -> None:
        if ModelSpec.from_dict(plain) != self.spec:
            raise CannotResume(
                f"{self.folder}: the run was made with another model than the configuration describes; "
                f"use that configuration, or another folder"
            )

    def _folded_again(
        self, at: Resumed, header: Mapping[str, Any], used: list[UpdateHead], strategy: Strategy
    ) -> Commit | None:
        """The round's commit from its updates; None where some are lost or give other bits than were committed."""
        if len(used) < len(header["updates"]):
            return None
        done = fold_round(strategy, at.blocks, at.versions, used, self.delta)
        same = {block: digest(vector) for block, vector in done.blocks.items()} == header["digests"]
        return done if same else None

    def _blocks_of(self, record: Record) -> dict[str, Vector]:
        """The blocks that a commit carries. CannotResume where they are not what was committed."""
        body, blocks = self.journal.read(record.position), {}
        for block, (start, size, dtype) in record.header["layout"].items():
            blocks[block] = np.frombuffer(body[start : start + size], dtype).copy()
            if digest(blocks[block]) != record.header["digests"][block]:
                raise CannotResume(
                    f"{self.folder}: round {record.header['round']}, block {block}: other bits than committed"
                )
        return blocks

    def _replay(self, at: Resumed, record: Record, heads: dict[str, UpdateHead], strategy: Strategy) -> None:
        header = record.header
        if header["round"] != at.round:
            raise CannotResume(
                f"{self.folder}: round {at.round} is missing, the journal goes on with {header['round']}"
            )
        used = [heads[id] for id in header["updates"] if id in heads]
        done = self._folded_again(at, header, used, strategy)
        if done is None:
            done = Commit(self._blocks_of(record), header["versions"], {})
            self.mended.append(int(header["round"]))
        at.blocks.update(done.blocks)
        at.versions.update({block: int(v) for block, v in header["versions"].items()})
        strategy.observe(int(header["round"]), done.seen)
        strategy.heard(int(header["round"]), sorted(used, key=lambda head: head.device))
        at.done = {head.device: head for head in used}
        at.epoch, at.round = int(header["epoch"]), int(header["round"]) + 1
        # Where updates are lost nobody can tell who has answered: then nobody is waited for, and nothing counts twice.
        at.late = {} if len(used) < len(header["updates"]) else unanswered(at.late, at.assignments, at.done)
        at.assignments, at.stored, at.opened = {}, {}, False
        self.forget(list(header["updates"]))

    def close(self) -> None:
        self.journal.close()


def digest(vector: Vector) -> bytes:
    """sha256 of a vector's bytes."""
    return hashlib.sha256(np.ascontiguousarray(vector).view(np.uint8).data).digest()


def _round_of(header: Mapping[str, Any]) -> int:
    """The round that a record belongs to: an update to the one that it is folded into."""
    if "head" in header:
        return int(header.get("into", header["head"]["round"]))
    return int(header.get("round", 0))


def _assignments(plain: Mapping[str, Any]) -> dict[str, Assignment]:
    return {device: Assignment.model_validate(a) for device, a in plain.items()}
