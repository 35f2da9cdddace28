"""What happens to a device (events) and what it then does (actions): the vocabulary of `Agent.handle`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from device_runtime.downloads import Held
from models.spec import ModelSpec
from protocol.messages import (
    Answer,
    Assignment,
    BlockSpeed,
    Chunk,
    CoordinatorState,
    Label,
    Manifest,
    Message,
    Order,
    Prediction,
    Report,
    Scale,
    Update,
)
from protocol.transport import Connected, Lost, Stopped

# -- events --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ManifestHeard:
    block: str
    manifest: Manifest


@dataclass(frozen=True)
class ChunkHeard:
    block: str
    chunk: Chunk


@dataclass(frozen=True)
class TrainingDone:
    """The trainer finished, with all or part of the steps."""

    assignment: str
    update: Update


@dataclass(frozen=True)
class TrainingFailed:
    """The trainer gave up, or had no time for a single step."""

    assignment: str
    reason: str


@dataclass(frozen=True)
class OrderDone:
    report: Report


@dataclass(frozen=True)
class Predicted:
    """The model's word on the newest window."""

    prediction: Prediction


@dataclass(frozen=True)
class Released:
    """The registered version that is predicted by from now on; 0: the newest blocks as they come."""

    version: int


@dataclass(frozen=True)
class SensorsChanged:
    """What the sensors deliver now: modality -> channels, labelled training windows at hand and their sums."""

    modalities: Mapping[str, int]
    windows: int
    scale: Mapping[str, Scale]


@dataclass(frozen=True)
class Profiled:
    """Measured seconds per window and block, and the processor they were measured on."""

    speed: Mapping[str, BlockSpeed]
    accelerator: str = "cpu"


@dataclass(frozen=True)
class Power:
    """What is known of the power source, in watts; 0 where it is not known."""

    source: str
    watts: float
    idle_watts: float


@dataclass(frozen=True)
class Health:
    """Why no assignment should be taken on now (low battery, too hot); empty where all is well."""

    decline: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    Connected
    | Lost
    | Stopped
    | CoordinatorState
    | ManifestHeard
    | ChunkHeard
    | Assignment
    | Answer
    | Order
    | Label
    | TrainingDone
    | TrainingFailed
    | OrderDone
    | Predicted
    | Released
    | SensorsChanged
    | Profiled
    | Power
    | Health
    | Tick
)

# -- actions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subscribe:
    filters: tuple[str, ...]


@dataclass(frozen=True)
class Unsubscribe:
    filters: tuple[str, ...]


@dataclass(frozen=True)
class Publish:
    topic: str
    message: Message
    retain: bool = False
    qos: int = 1


@dataclass(frozen=True)
class UseModel:
    """The coordinator's model from now on."""

    spec: ModelSpec


@dataclass(frozen=True)
class StartTraining:
    """Train `assignment` on these blocks (by name, bases included) with the modalities `present`.

    stop_at    by the clock of `now`: at the first step border after it training ends with what it has; inf: never.
               The budget's seconds count from the first step and are the trainer's to keep
    """

    assignment: Assignment
    present: tuple[str, ...]
    blocks: Mapping[str, Held]
    stop_at: float


@dataclass(frozen=True)
class StopTraining:
    """End this training at the next step border and forget what it brought."""

    assignment: str


@dataclass(frozen=True)
class Keep:
    """Put the update into the outbox."""

    update: Update


@dataclass(frozen=True)
class Ask:
    """Ask the coordinator which chunks of an update have not come; it answers with an Answer that has `resume`."""

    update: str


@dataclass(frozen=True)
class Upload:
    """Publish an update that is in the outbox: these of its chunks, or all where none are named."""

    update: str
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drop:
    """The update was answered for good: take it out of the outbox."""

    update: str
    accepted: bool


@dataclass(frozen=True)
class Obey:
    """Carry out an order; its result comes back as OrderDone."""

    order: Order


@dataclass(frozen=True)
class Adopt:
    """Predict by a registered version, whose blocks are all here under their own names; OrderDone tells the end."""

    order: Order
    version: int
    blocks: Mapping[str, Held]


@dataclass(frozen=True)
class Annotate:
    """Join an operator's label to the windows it covers."""

    label: Label


@dataclass(frozen=True)
class GiveUp:
    """End the runtime: nothing can be reached until somebody changes something."""

    reason: str


@dataclass(frozen=True)
class Note:
    """Something an owner would want to read in the log."""

    text: str
    trouble: bool = False


Action: TypeAlias = (
    Subscribe
    | Unsubscribe
    | Publish
    | UseModel
    | StartTraining
    | StopTraining
    | Keep
    | Ask
    | Upload
    | Drop
    | Obey
    | Adopt
    | Annotate
    | GiveUp
    | Note
)
