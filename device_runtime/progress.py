"""A round's training on disk, so that a restart goes on where it stopped instead of beginning anew."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_runtime.events import StartTraining
from models.partition import Vector

EVERY = 5.0  # seconds of training between two writes: short rounds never touch the disk


@dataclass(frozen=True)
class State:
    """Training before step `step`: flat vectors per block, and what had been counted by then.

    seconds    of wall time that the steps so far took, all lives together
    joules     likewise; 0 where the device's power is not known
    """

    step: int
    weights: dict[str, Vector]
    momentum: dict[str, Vector]
    done: dict[str, int]
    loss: float
    seen: int
    seconds: float = 0.0
    joules: float = 0.0


def key_of(start: StartTraining) -> str:
    """The same only for the same assignment on the same blocks."""
    a = start.assignment
    digests = {name: held.manifest.digest.hex() for name, held in start.blocks.items()}
    plain = [a.id, a.epoch, a.round, a.steps, a.training, start.present, digests]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class Progress:
    """One file in `folder`, replaced as a whole. A disk that fails costs nothing but the chance to resume."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic, every: float = EVERY) -> None:
        self._path, self._clock, self._every = folder / "training.safetensors", clock, every
        self._key, self._due = "", 0.0

    def begin(self, key: str) -> State | None:
        """Start on a round; what an earlier life left of the very same one, or None."""
        from safetensors import SafetensorError, safe_open  # not needed by a device that cannot train

        self._key, self._due = key, self._clock() + self._every
        try:
            with safe_open(str(self._path), framework="np") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                if about.get("key") != key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError, ValueError):
            return None
        sides: dict[str, dict[str, Vector]] = {"weights": {}, "momentum": {}}
        for name, values in tensors.items():
            side, _, block = name.partition("/")
            sides[side][block] = values
        return State(
            about["step"],
            sides["weights"],
            sides["momentum"],
            about["done"],
            about["loss"],
            about["seen"],
            about["seconds"],
            about.get("joules", 0.0),  # a file of a runtime before this one has none
        )

    def due(self) -> bool:
        """Whether it is time to write again."""
        return self._clock() >= self._due

    def save(self, state: State) -> None:
        """Replace the file."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        self._due = self._clock() + self._every
        tensors = {f"weights/{b}": v for b, v in state.weights.items()}
        tensors |= {f"momentum/{b}": v for b, v in state.momentum.items()}
        about = {"key": self._key, "step": state.step, "done": state.done, "loss": state.loss, "seen": state.seen}
        about |= {"seconds": state.seconds, "joules": state.joules}
        beside = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError, SafetensorError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, str(beside), {"about": json.dumps(about)})
            beside.replace(self._path)

    def clear(self) -> None:
        """The round is over, well or badly."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
