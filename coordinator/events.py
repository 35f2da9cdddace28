"""What reaches the round core and what it wants done: plain values, so that a round can be journalled and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.aggregation import Divergence
from coordinator.quarantine import Held
from protocol.messages import Assignment, Status, Update


@dataclass(frozen=True)
class UpdateHead:
    """An update without its tensors. `blocks`: block -> (base version, local steps)."""

    id: str
    device: str
    boot: str
    round: int
    epoch: int
    assignment: str
    blocks: dict[str, tuple[int, int]]
    samples: int
    loss: float = 0.0
    entropy: float = 0.0  # of the device's predictions, in nats; 0: not told
    partial: bool = False
    seconds: float = 0.0
    joules: float = 0.0
    power_source: str = "none"
    size: int = 0  # bytes of its tensors

    @classmethod
    def of(cls, update: Update) -> UpdateHead:
        return cls(
            id=update.id,
            device=update.device,
            boot=update.boot,
            round=update.round,
            epoch=update.epoch,
            assignment=update.assignment,
            blocks={name: (b.version, b.steps) for name, b in update.blocks.items()},
            samples=update.samples,
            loss=update.loss,
            entropy=update.entropy,
            partial=update.partial,
            seconds=update.seconds,
            joules=update.joules,
            power_source=update.power_source,
            size=sum(len(b.delta.data) for b in update.blocks.values()),
        )

    def to_dict(self) -> dict[str, Any]:
        plain = dict(self.__dict__)
        plain["blocks"] = {name: list(pair) for name, pair in self.blocks.items()}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> UpdateHead:
        blocks = {name: (int(v), int(s)) for name, (v, s) in plain["blocks"].items()}
        return cls(**{**plain, "blocks": blocks})


# -- events --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatusArrived:
    device: str
    status: Status


@dataclass(frozen=True)
class UpdateArrived:
    """An update whose tensors were checked against the layout (coordinator.intake)."""

    head: UpdateHead


@dataclass(frozen=True)
class Stored:
    """These updates are in the journal and on disk."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Declined:
    device: str
    assignment: str
    reason: str


@dataclass(frozen=True)
class Folded:
    """A round's blocks are folded: the versions that changed and what the cohorts showed."""

    round: int
    versions: dict[str, int]
    seen: dict[str, tuple[Divergence, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wish:
    """An operator's: pause, resume, quarantine, release. `operator` is whom to answer, `request` what."""

    kind: str
    device: str = ""
    reason: str = ""
    operator: str = ""
    request: str = ""


@dataclass(frozen=True)
class Suspended:
    """The rule of coordinator.quarantine leaves a device out for a while."""

    device: str
    held: Held


@dataclass(frozen=True)
class Tick:
    """Time has passed; sent at the latest at `Rounds.due`."""


Event = StatusArrived | UpdateArrived | Stored | Declined | Folded | Wish | Suspended | Tick


# -- actions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Open:
    """Journal that a round begins, before any of its assignments is sent.

    normalisation, versions    modality -> centre and width that are new, and the version that carries them
    late                       device -> its assignment of a closed round that may still be answered
    counts                     modality -> samples behind its new normalisation
    """

    round: int
    epoch: int
    assignments: dict[str, Assignment]
    normalisation: dict[str, tuple[list[float], list[float]]]
    versions: dict[str, int] = field(default_factory=dict)
    late: dict[str, Assignment] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Send:
    """Send an assignment; it expires after `expiry` seconds."""

    device: str
    assignment: Assignment
    expiry: int


@dataclass(frozen=True)
class Store:
    """Journal an update for this round, which may be later than its own; answered by Stored once it is on disk."""

    head: UpdateHead
    round: int


@dataclass(frozen=True)
class Acknowledge:
    """Tell a device what became of its update."""

    device: str
    update: str
    accepted: bool
    reason: str = ""
    again: bool = False


@dataclass(frozen=True)
class Keep:
    """Journal what operators want of the rounds from now on, then tell `operator` that `request` is done.

    held    device -> reason, of those that only an operator releases
    """

    round: int
    paused: bool
    held: dict[str, str]
    operator: str
    request: str


@dataclass(frozen=True)
class Fold:
    """Fold exactly these updates, in this order, into the next versions; answered by Folded."""

    round: int
    epoch: int
    updates: tuple[str, ...]


@dataclass(frozen=True)
class Say:
    """The summary has changed in a way that operators want to see."""


Action = Open | Send | Store | Acknowledge | Keep | Fold | Say
