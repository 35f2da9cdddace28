"""What a round would cost a device: seconds, joules and bytes as a function of the blocks and steps it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.cost import block_costs
from models.spec import SHARED, Mode, ModelSpec


@dataclass(frozen=True)
class Speed:
    """Seconds per window of one block: encoder forward, the fusion part's forward, and backward when it is trained."""

    encode: float
    fuse: float
    backward: float


@dataclass(frozen=True)
class Member:
    """A device as strategies see it.

    owned      modalities it has, in the model's order; windows  n_i
    speed      block -> Speed, measured or from FLOPs
    rate       uplink bytes per second (0: not limited); watts  above idle while training (0: not known)
    overhead   seconds of a round that no choice changes: latency, download
    """

    id: str
    owned: tuple[str, ...]
    windows: int
    speed: Mapping[str, Speed]
    rate: float = 0.0
    watts: float = 0.0
    overhead: float = 0.0
    tier: str = ""
    measured: bool = False


@dataclass(frozen=True)
class Budget:
    """A device's limits in a round; infinite where nothing limits it."""

    seconds: float = float("inf")
    joules: float = float("inf")
    bytes: float = float("inf")


@dataclass(frozen=True)
class Work:
    """Cost of a round for one device: seconds(x, s) = fixed + sum still + s * (step + sum train) + uploads.

    step     seconds per local step whatever is chosen: fusion of all features, the shared block's training
    train    block -> further seconds per step in which it is trained
    still    block -> seconds once a round when it is not trained (its cached features)
    upload   block -> seconds to send its update;  size  block -> bytes of its update
    """

    step: float
    train: Mapping[str, float]
    still: Mapping[str, float]
    upload: Mapping[str, float]
    size: Mapping[str, int]
    watts: float
    fixed: float = 0.0
    blocks: tuple[str, ...] = field(default=())

    def compute(self, steps: Mapping[str, int]) -> float:
        """Seconds of computing for these local steps per block (the shared one decides the number of steps)."""
        rounds = max(steps.values(), default=0)
        if not rounds:
            return 0.0
        busy = sum(self.train[m] * steps[m] for m in self.blocks if steps.get(m))
        return rounds * self.step + busy + sum(self.still[m] for m in self.blocks if not steps.get(m))

    def seconds(self, steps: Mapping[str, int]) -> float:
        """Seconds of the whole round, the upload included."""
        return self.fixed + self.compute(steps) + sum(self.upload[b] for b, s in steps.items() if s)

    def joules(self, steps: Mapping[str, int]) -> float:
        """Joules above idle; 0 where the device's power is not known."""
        return self.watts * self.compute(steps)

    def bytes(self, steps: Mapping[str, int]) -> int:
        """Bytes of the update."""
        return sum(self.size[b] for b, s in steps.items() if s)


def work(
    spec: ModelSpec,
    member: Member,
    batch: int,
    *,
    everything: bool = False,
    cached: bool = True,
    dropout: float = 0.0,
    passes: int = 1,
    looks: int = 1,
) -> Work:
    """The cost model of a member: what a step of `batch` windows costs, on average over modality dropout.

    everything      absent modalities are computed too, as zeros (zero-filled FedAvg)
    passes, looks   forward and backward passes of a step, and forward passes (models.local.Local)
    """
    costs = block_costs(spec)
    blocks = spec.names if everything else member.owned
    lora = spec.mode is Mode.LORA and not spec.encoder_rank
    step = member.speed[SHARED].fuse * looks + member.speed[SHARED].backward * passes
    # A modality takes part unless dropped; when all would be, one of them stays (models.local.kept).
    part = 1.0 - dropout + dropout ** len(blocks) / len(blocks) if blocks else 1.0
    train, still = {}, {}
    for m in blocks:
        speed = member.speed[m]
        step += speed.fuse * part * looks
        # Encoders that are frozen for good are run once a window and kept: they cost nothing in a later round.
        encode = 0.0 if lora else speed.encode
        train[m] = (encode * looks + speed.backward * passes) * batch * part
        still[m] = (encode * member.windows) if cached else 0.0
        if not cached:
            step += encode * part * looks
            train[m] -= encode * batch * part * looks
    send = {b: costs[b].bytes / member.rate if member.rate else 0.0 for b in (*blocks, SHARED)}
    sizes = {b: costs[b].bytes for b in (*blocks, SHARED)}
    return Work(step * batch, train, still, send, sizes, member.watts, member.overhead, tuple(blocks))


def speed_from_flops(spec: ModelSpec, flops_per_second: float) -> dict[str, Speed]:
    """Speeds of a device that is known by its arithmetic alone."""
    return {
        block: Speed(c.encode / flops_per_second, c.fuse / flops_per_second, c.backward / flops_per_second)
        for block, c in block_costs(spec).items()
    }
