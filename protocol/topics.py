"""The topic tree, once: who writes which leaf, with which quality, retained or not.

Everything that must agree about topics (clients, the broker's ACL, the docs) is made from `TABLE`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

ROOT = "relief/v1"
MAX_NAME = 64  # bytes: fleets and devices
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


class Role(str, Enum):
    """Who may write a leaf."""

    COORDINATOR = "coordinator"
    DEVICE = "device"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Leaf:
    """One row of the topic table. `path` is below the fleet, with {id}, {block}, {k} or {op} as levels.

    readers   roles that may subscribe to it, besides its writer; a device reads only its own {id}
    bulk      whether it travels on the coordinator's connection for tensors, not on the one for what must be quick
    """

    path: str
    writer: Role
    readers: tuple[Role, ...]
    message: str
    qos: int = 1
    retained: bool = False
    about: str = ""
    bulk: bool = False


_C, _D, _O = Role.COORDINATOR, Role.DEVICE, Role.OPERATOR

TABLE: tuple[Leaf, ...] = (
    Leaf("coordinator/state", _C, (_D, _O), "CoordinatorState", retained=True, about="epoch, boot, model; will"),
    Leaf(
        "coordinator/round",
        _C,
        (_O,),
        "RoundSummary",
        retained=True,
        about="the running summary of the round",
    ),
    Leaf(
        "coordinator/request",
        _O,
        (_C,),
        "Request",
        about="pause, resume, adopt, roll back, quarantine, release, orders",
    ),
    Leaf("coordinator/reply/{op}", _C, (_O,), "Reply", about="the answer to an operator's request"),
    Leaf("block/{block}/manifest", _C, (_D, _O), "Manifest", retained=True, about="version, chunks, digest", bulk=True),
    Leaf("block/{block}/{k}", _C, (_D, _O), "Chunk", retained=True, about="chunk k of the block", bulk=True),
    Leaf("device/{id}/assignment", _C, (_D, _O), "Assignment", about="blocks, steps, budget; expires"),
    Leaf("device/{id}/answer", _C, (_D, _O), "Answer", about="update accepted or refused"),
    Leaf(
        "device/{id}/order",
        _C,
        (_D, _O),
        "Order",
        about="profile, evaluate, adopt, roll back, update runtime",
    ),
    Leaf("device/{id}/status", _D, (_C, _O), "Status", retained=True, about="birth and death; will"),
    Leaf("device/{id}/update", _D, (_C,), "Chunk", about="chunk of an update", bulk=True),
    Leaf("device/{id}/report", _D, (_C, _O), "Report", about="results of orders, declined assignments"),
    Leaf("device/{id}/telemetry", _D, (_C, _O), "Telemetry", qos=0, about="power, temperature, memory, sensors"),
    Leaf("device/{id}/prediction", _D, (_O,), "Prediction", qos=0, about="on-device inference"),
    Leaf("device/{id}/label", _O, (_D,), "Label", about="annotation of an interval"),
)


def check_name(name: str, what: str) -> str:
    """`name` itself if it can be a topic level; ValueError naming `what` otherwise."""
    if not _NAME.match(name) or len(name.encode()) > MAX_NAME:
        raise ValueError(
            f"{what} {name!r}: use 1 to {MAX_NAME} letters, digits, '_', '-' or '.', beginning with a letter or digit"
        )
    return name


@dataclass(frozen=True)
class Topics:
    """The topics of one fleet. Every method returns a full topic or, with a `+`, a filter."""

    fleet: str

    def __post_init__(self) -> None:
        check_name(self.fleet, "fleet")

    @property
    def root(self) -> str:
        return f"{ROOT}/{self.fleet}"

    def coordinator(self, leaf: str) -> str:
        return f"{self.root}/coordinator/{leaf}"

    def reply(self, operator: str) -> str:
        return f"{self.root}/coordinator/reply/{operator}"

    def manifest(self, block: str) -> str:
        return f"{self.root}/block/{block}/manifest"

    def chunk(self, block: str, k: int | str) -> str:
        return f"{self.root}/block/{block}/{k}"

    def device(self, device: str, leaf: str) -> str:
        return f"{self.root}/device/{device}/{leaf}"

    def parse(self, topic: str) -> tuple[str, ...] | None:
        """The levels below the fleet, or None for a topic of another fleet or tree."""
        if not topic.startswith(self.root + "/"):
            return None
        return tuple(topic[len(self.root) + 1 :].split("/"))


@lru_cache(maxsize=1 << 14)
def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT filter with + and # takes in a topic (MQTT 5, 4.7)."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if levels[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    for n, level in enumerate(wanted):
        if level == "#":
            return True
        if n >= len(levels) or level not in ("+", levels[n]):
            return False
    return len(wanted) == len(levels)
