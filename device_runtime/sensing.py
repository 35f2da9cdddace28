"""A device's senses: one thread that reads a source into a ring of labelled windows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from device_runtime.downloads import Held
from protocol.messages import Label, Scale
from sensors.recording import DataError, Floats, Ints
from sensors.stream import Source, WindowRing

log = logging.getLogger("relief.device")

WAIT = 1.0  # seconds a read may wait: how long closing can take


@dataclass(frozen=True)
class Labelled:
    """Training windows at one moment, raw units.

    x     modality -> (N, channels, samples) float32
    y     (N,) class index
    ids   (N,) a number per window that stays with it, rising
    """

    x: dict[str, Floats]
    y: Ints
    ids: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


def recognised(windows: Labelled, classes: int) -> Labelled:
    """Those whose label is one of the model's `classes`: a slip in one label must not cost the other windows."""
    ours = windows.y < classes
    if ours.all():
        return windows
    return Labelled({name: x[ours] for name, x in windows.x.items()}, windows.y[ours], windows.ids[ours])


class Sensing(Protocol):
    """What the runtime asks of whatever delivers windows. `changed` is called from its thread and only enqueues."""

    def open(self, changed: Callable[[], None]) -> None: ...

    @property
    def modalities(self) -> dict[str, int]:
        """What delivers now: modality -> channels."""

    @property
    def count(self) -> int:
        """Labelled windows at hand."""

    def labelled(self) -> Labelled:
        """A copy of the labelled training windows at hand."""

    def latest(self) -> tuple[float, float, dict[str, Floats]] | None:
        """Start, end and windows (1, channels, samples) of the newest stretch, for inference."""

    def told(self) -> dict[str, Any]:
        """For telemetry: `sensors`, modality -> how it does, and what was lost on the way to the windows held."""

    def annotate(self, label: Label) -> None:
        """Join an operator's label to the windows it covers."""

    def close(self) -> None: ...


class Ring(WindowRing):
    """The ring with a running number for every window it ever held."""

    @property
    def count(self) -> int:
        return min(self._count, self._capacity)

    @property
    def cut(self) -> int:
        """Windows ever cut."""
        return self._count

    def labelled(self) -> Labelled:
        """A copy of what is held, with numbers that belong to it even while windows come in."""
        while True:
            before = self.cut
            held = self.windows()
            if self.cut == before:
                return Labelled(held.x, held.y, np.arange(before - len(held), before, dtype=np.int64))


class Stream:
    """Reads `source` in a thread of its own until it ends; `problem` says why a source that failed is silent."""

    def __init__(self, source: Source, ring: Ring) -> None:
        self.problem = ""
        self._source, self._ring = source, ring
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def open(self, changed: Callable[[], None]) -> None:
        """Start sensing."""
        self._thread = threading.Thread(target=self._run, args=(changed,), name="sensors", daemon=True)
        self._thread.start()

    @property
    def modalities(self) -> dict[str, int]:
        return {} if self.problem else {m.name: len(m.channels) for m in self._source.modalities}

    @property
    def count(self) -> int:
        return self._ring.count

    def labelled(self) -> Labelled:
        return self._ring.labelled()

    def latest(self) -> tuple[float, float, dict[str, Floats]] | None:
        return self._ring.latest()

    def told(self) -> dict[str, Any]:
        silent = {m.name: {"state": "dead", "reason": self.problem} for m in self._source.modalities if self.problem}
        return {"sensors": silent, **lost([self._ring])}

    def annotate(self, label: Label) -> None:
        self._ring.annotate(label.start, label.end, label.label)

    def close(self) -> None:
        """Stop; returns once the thread has ended (a second at most)."""
        self._closing.set()
        self._source.close()
        if self._thread:
            self._thread.join(2 * WAIT)

    def _run(self, changed: Callable[[], None]) -> None:
        try:
            self._source.open()
            before = 0
            while not self._closing.is_set() and not self._source.ended:
                samples = self._source.read(WAIT)
                if samples is not None:
                    self._ring.push(samples)
                    if self._ring.cut > before:
                        before = self._ring.cut
                        changed()
            self._ring.flush()
        except (OSError, KeyError, DataError) as error:
            self.problem = str(error)
            log.error("sensors: %s", error)
        changed()


def lost(rings: Sequence[Ring]) -> dict[str, int]:
    """What did not become windows of these rings, for telemetry."""
    return {"windows_dropped": sum(r.dropped for r in rings), "pieces_refused": sum(r.refused for r in rings)}


def scale(windows: Labelled) -> dict[str, Scale]:
    """Sums per channel over all windows and samples, in double precision: the fleet's normalisation is made of them."""
    found = {}
    for name, x in windows.x.items():
        if len(x):
            total = x.sum(axis=(0, 2), dtype=np.float64)
            squares = np.einsum("ncs,ncs->c", x, x, dtype=np.float64)
            found[name] = Scale(count=x.shape[0] * x.shape[2], total=total.tolist(), squares=squares.tolist())
    return found


def normalised(
    windows: Labelled, present: Sequence[str], blocks: Mapping[str, Held]
) -> tuple[dict[str, Floats], npt.NDArray[np.int64]]:
    """Windows of `present` modalities by the fleet's normalisation, and their labels; what was not sensed is left out.

    ValueError where the normalisation has another number of channels.
    """
    x = {}
    for m in present:
        if m not in windows.x:
            continue  # zero filling
        values, manifest = windows.x[m], blocks[m].manifest
        if manifest.center or manifest.width:
            if not len(manifest.center) == len(manifest.width) == values.shape[1]:
                raise ValueError(f"block {m}: normalisation of {len(manifest.center)} channels, {values.shape[1]} here")
            center = np.asarray(manifest.center, np.float32)[:, None]
            width = np.asarray(manifest.width, np.float32)[:, None]
            values = (values - center) / width
        x[m] = np.ascontiguousarray(values, np.float32)
    return x, windows.y.astype(np.int64)
