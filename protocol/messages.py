"""What the parties say: typed messages, msgpack on the wire.

Tensors travel as raw little-endian bytes, taken from and given back through memoryview. Unknown fields are ignored, so
that a newer peer is understood; everything else that does not fit is refused with the field's name.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from protocol.errors import Malformed, TooLarge
from protocol.topics import check_name

PROTOCOL = 1  # raised when an older peer would misread us; said at birth
OLDEST = 1  # the oldest that is still understood: one version back, once there are two
UNSAID = 1  # what a peer speaks that says nothing of it; never raised, or old and new would look alike
RESUME = "resume"  # kind of a report
MAX_MESSAGE = 256 * 1024 * 1024  # bytes: nothing larger is decoded


def strange(theirs: int, who: str, oldest: int = OLDEST, newest: int = PROTOCOL) -> str:
    """Why a peer of protocol `theirs` cannot be dealt with, and which side to update; empty where it can."""
    if oldest <= theirs <= newest:
        return ""
    ours = f"{newest}" if oldest == newest else f"{oldest} to {newest}"
    older = who if theirs < oldest else "this side"
    return f"{who} speaks protocol {theirs}, this side {ours}: update {older}"


def _buffer(value: object) -> bytes | memoryview:
    if not isinstance(value, (bytes, memoryview)):
        raise ValueError(f"expected bytes, got {type(value).__name__}")
    return value


Buffer = Annotated[Any, PlainValidator(_buffer)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Operator = Annotated[str, AfterValidator(lambda name: check_name(name, "operator"))]  # becomes a level of a topic
Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """Base of all messages: immutable, strictly typed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    def encode(self) -> bytes:
        """msgpack of the fields, defaults left out."""
        packed: bytes = msgpack.packb(self, default=_plain)
        return packed


class Tensor(Message):
    """A block's vector: dtype in numpy's notation, `data` its raw bytes; int8 carries its `scale`."""

    dtype: Literal["<f4", "<f8", "<f2", "|i1"] = "<f4"
    data: Buffer
    scale: Finite = 1.0

    @classmethod
    def of(cls, vector: npt.NDArray[Any], scale: float = 1.0) -> Tensor:
        """Wrap a contiguous vector without copying it."""
        plain = np.ascontiguousarray(vector)
        return cls.model_validate({"dtype": plain.dtype.str, "data": plain.view(np.uint8).data, "scale": scale})

    def array(self) -> npt.NDArray[Any]:
        """The vector, read-only, over the message's own bytes; int8 is scaled back to float32.

        ValueError where the bytes are no whole number of values.
        """
        raw = np.frombuffer(self.data, dtype=self.dtype)
        return raw if raw.dtype.kind == "f" else raw.astype(np.float32) * np.float32(self.scale)


# -- coordinator ---------------------------------------------------------------------------------------------


class CoordinatorState(Message):
    """Retained. A new `boot` asks every device for its birth; a new `epoch` makes all older work stale."""

    online: bool
    boot: str = ""
    epoch: Count = 0
    protocol: int = UNSAID
    resumes: bool = False  # it answers reports of kind RESUME
    model: dict[str, Any] = {}  # models.ModelSpec.to_dict()


class Manifest(Message):
    """Retained. Says whether a block's download is needed; `center` and `width` normalise the modality's channels."""

    block: Name
    version: Count
    epoch: Count
    chunks: Count
    size: Count
    digest: bytes  # sha256 of the block
    dtype: Literal["<f4", "<f8"] = "<f4"
    center: list[Finite] = []
    width: list[Finite] = []


class Chunk(Message):
    """Part `index` of `count` of something whose whole bytes have this sha256 `digest`; `id` tells wholes apart.

    A block's first chunk has its manifest with it: whoever follows the chunks needs no second message per version.
    """

    id: str
    index: Count
    count: Annotated[int, Field(ge=1, le=65536)]
    digest: bytes
    data: Buffer
    manifest: Manifest | None = None


class Assignment(Message):
    """What a device shall do in a round, by `deadline` seconds after it was sent.

    steps      local steps per block; blocks that are missing stay frozen
    versions   block -> version the training starts from (every block the device computes with)
    seconds, joules, rate    the budget and the uplink's bytes per second it was made for (0: not limited)
    slot       seconds to wait before uploading, so that a fleet does not answer at once
    training   the local rule (device_runtime.trainer.Local as plain fields)
    predicted_seconds    what the coordinator expects this to take
    """

    id: str
    round: Count
    epoch: Count
    steps: dict[str, Count]
    versions: dict[str, Count]
    deadline: Finite
    seconds: Finite = 0.0
    joules: Finite = 0.0
    rate: Finite = 0.0
    slot: Finite = 0.0
    training: dict[str, Any] = {}
    predicted_seconds: Finite = 0.0


class Answer(Message):
    """The application's acknowledgement; until it arrives the update stays in the device's outbox.

    With `resume` it is none: it says which chunks of an unfinished upload are still needed.
    """

    update: str
    accepted: bool
    reason: str = ""
    again: bool = False  # refused for now: keep it and send it once more
    resume: bool = False  # not an acknowledgement, but what a report of kind RESUME asked for
    missing: list[Count] = []  # with `resume`: the chunks that have not come; empty: none has


class Order(Message):
    """Something else to do; answered by a Report with the same id."""

    id: str
    kind: Literal["profile", "evaluate", "adopt", "rollback", "update_runtime"]
    args: dict[str, Any] = {}


class RoundSummary(Message):
    """Retained. The running summary of the round, for operators and dashboards."""

    round: Count
    epoch: Count
    phase: str
    fields: dict[str, Any] = {}


class Request(Message):
    """An operator's wish; answered on the reply topic of `operator`."""

    id: str
    operator: Operator
    kind: Literal["pause", "resume", "versions", "adopt", "rollback", "quarantine", "release", "order"]
    args: dict[str, Any] = {}


class Reply(Message):
    id: str
    ok: bool
    reason: str = ""
    values: dict[str, Any] = {}


# -- device --------------------------------------------------------------------------------------------------


class BlockSpeed(Message):
    """Measured seconds per window of one block: forward pass, and backward pass when trained."""

    forward: Finite
    backward: Finite


class Scale(Message):
    """Sums over a device's training windows, per channel, from which the cohort's normalisation is made."""

    count: Count
    total: list[Finite]
    squares: list[Finite]


class Status(Message):
    """Birth and death, retained; the will carries the birth's boot, so that a late death cannot bury a live device."""

    online: bool
    boot: str
    protocol: int = UNSAID
    reason: str = ""  # of a death: what ended it
    runtime: str = ""  # version of the installed runtime
    release: Count = 0  # registered version of the model that it predicts by; 0: the newest blocks as they come
    tier: str = ""
    modalities: dict[str, Count] = {}  # name -> channels
    windows: Count = 0  # labelled training windows at hand
    can_train: bool = False
    speed: dict[str, BlockSpeed] = {}
    accelerator: str = ""  # what trains: cpu, or cuda with the GPU's name; empty: not known yet
    scale: dict[str, Scale] = {}
    watts: Finite = 0.0  # above idle while training; 0: not known
    idle_watts: Finite = 0.0
    power_source: str = "none"
    rate: Finite = 0.0  # uplink bytes per second; 0: not known


class BlockWork(Message):
    """What an update did to one block: Delta = trained - base, after `steps` steps, from base `version`."""

    version: Count
    steps: Count
    delta: Tensor
    seconds: Finite = 0.0
    joules: Finite = 0.0


class Update(Message):
    """A device's result of one round. It travels in Chunks whose `id` is this id."""

    id: str
    device: Name
    boot: str
    round: Count
    epoch: Count
    assignment: str
    blocks: dict[str, BlockWork]
    samples: Count  # n_i, training windows at hand
    loss: Finite = 0.0
    entropy: Finite = (
        0.0  # mean over the last epoch's predictions, in nats, where the local rule asks for it; 0: not told
    )
    partial: bool = False
    seconds: Finite = 0.0
    joules: Finite = 0.0
    power_source: str = "none"


def update_id(device: str, boot: str, assignment: str) -> str:
    """The id of what this life of a device answers to an assignment; nobody else's can be the same."""
    return hashlib.sha256("\0".join((device, boot, assignment)).encode()).hexdigest()[:32]


class Report(Message):
    """The result of an order, or a declined assignment (`kind` "declined", `id` the assignment's).

    Kind RESUME asks which chunks of the update `id` are still missing; values: chunks, how many there are of it.
    """

    id: str
    kind: str
    ok: bool
    reason: str = ""
    values: dict[str, Any] = {}


class Telemetry(Message):
    time: Finite
    values: dict[str, Any] = {}


class Prediction(Message):
    """One window's class by the model at these block versions; `start` and `end` in the sensor's time."""

    start: Finite
    end: Finite
    label: Count
    confidence: Finite
    versions: dict[str, Count] = {}


class Label(Message):
    """An operator's annotation: class `label` held from `start` to `end`, seconds since the epoch."""

    start: Finite
    end: Finite
    label: Count


M = TypeVar("M", bound=Message)


def decode(kind: type[M], payload: bytes | memoryview) -> M:
    """Read one message. Raises Malformed (which field, what was expected) or TooLarge; nothing else."""
    if len(payload) > MAX_MESSAGE:
        raise TooLarge(kind.__name__, len(payload), MAX_MESSAGE)
    try:
        plain = msgpack.unpackb(payload, use_list=True)
    except Exception as error:  # msgpack raises a dozen unrelated types for bytes from strangers
        raise Malformed(kind.__name__, f"not msgpack ({type(error).__name__})") from None
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(level)[:40] for level in first["loc"]) or "message"
        raise Malformed(kind.__name__, f"{where}: {first['msg']}") from None


_REQUIRED = object()


@cache
def _fields(kind: type[Message]) -> tuple[tuple[str, object], ...]:
    """(name, default) of every field."""
    fields = kind.model_fields.items()
    return tuple((name, _REQUIRED if field.is_required() else field.get_default()) for name, field in fields)


def _plain(message: object) -> dict[str, Any]:
    """A message's fields, for msgpack, which finds messages within them by itself. TypeError for anything else.

    model_dump would turn buffers into lists and walk every value.
    """
    if not isinstance(message, Message):
        raise TypeError(f"{type(message).__name__} cannot travel in a message")
    plain = {}
    for name, default in _fields(type(message)):
        value = getattr(message, name)
        if default is _REQUIRED or value != default:
            plain[name] = value
    return plain
