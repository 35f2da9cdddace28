"""Live sensors: pieces of samples from any source, and the ring that turns them into labelled windows.

What arrives is put on one clock per ring: a piece belongs where its time says, gaps stay gaps, and windows are cut by
the same rules as `windows.cut`, so that training on a stream and on a recording is the same thing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sensors.recording import UNLABELLED, Floats, Ints, Modality
from sensors.windows import Grid, Windows, runs

SLACK_S = 0.1  # a piece this close to where the one before ended goes on from there: clocks jitter, samples do not
LAG_S = 5.0  # a sensor that is this far behind the others has a gap; nobody waits for it longer
JUMP_S = 60.0  # a clock that jumps further was set anew


@dataclass(frozen=True)
class Samples:
    """n consecutive samples of one or more modalities that share a clock and a rate.

    time       of the first sample in seconds: since the epoch for live sensors, from the source's origin for replays
    streams    modality -> (n, channels) float32, NaN where a sample is missing
    labels     (n,) class index or UNLABELLED; empty where the source knows none
    """

    time: float
    rate_hz: float
    streams: dict[str, Floats]
    labels: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(next(iter(self.streams.values()), self.labels))


class Source(Protocol):
    """Something that senses: a replay, a device's own sensors, a topic. Used by one thread; `close` by any."""

    modalities: tuple[Modality, ...]

    def open(self) -> None:
        """Start sensing. Raises OSError or DataError saying what is missing."""

    def read(self, timeout: float | None = None) -> Samples | None:
        """The next piece; None when `timeout` seconds brought none, or at the end (see `ended`)."""

    @property
    def ended(self) -> bool:
        """No more will come: closed, or played to the end."""

    def close(self) -> None:
        """Stop sensing; a `read` that waits returns at once. May be called twice."""


class WindowRing:
    """The newest `capacity` labelled windows of a stream, from any thread.

    Windows in which a modality has a gap are dropped and counted. Pieces that come after their time has passed, or
    that do not fit a modality, are refused and counted. Labels may come with the samples or, up to `patience_s` later,
    through `annotate`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        rate_hz: float,
        window_s: float,
        overlap: float = 0.0,
        *,
        capacity: int = 4096,
        subject: str = "device",
        patience_s: float = 0.0,
    ) -> None:
        self.dropped = 0
        self.refused = 0
        self._channels = {m.name: len(m.channels) for m in modalities}
        self._rate, self._grid, self._subject = rate_hz, Grid.of(rate_hz, window_s, overlap), subject
        self._patience = round(patience_s * rate_hz)
        self._lock = threading.Lock()
        self._x = {n: np.empty((capacity, c, self._grid.samples), np.float32) for n, c in self._channels.items()}
        self._y, self._offset = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
        self._capacity, self._count = capacity, 0  # windows ever cut; window k lies in row k % capacity
        self._seen: dict[int, int] = {}  # class -> samples so far
        self._restart(0.0, first=True)

    def push(self, samples: Samples) -> None:
        """Take in a piece and cut what it completes. ValueError for another rate than the ring's (sensors.resample)."""
        with self._lock:
            if not self._fits(samples):
                self.refused += 1
                return
            at = (samples.time - self._origin) * self._rate
            reach = max(self._filled.values())
            if self._empty or abs(at - reach) > JUMP_S * self._rate:
                self._cut(reach)
                self._restart(samples.time)
                at = 0.0
            for name, stream in samples.streams.items():
                self._place(name, at, stream, samples.labels)
            self._cut(self._complete() - self._patience)

    def annotate(self, start: float, end: float, label: int) -> None:
        """An operator's word on an interval; only what has not been cut yet can still learn of it.

        What lies more than JUMP_S ahead of the samples is on another clock than ours and left out.
        """
        with self._lock:
            if self._empty:
                return
            ahead = max(self._filled.values()) - self._base + JUMP_S * self._rate
            first, last = (round(min((t - self._origin) * self._rate - self._base, ahead)) for t in (start, end))
            done = self._done - self._base
            self._reserve(self._base + max(last, 0))
            self._labels[max(first, done, 0) : max(last, done, 0)] = label

    def flush(self) -> None:
        """The stream is over: cut all that is there."""
        with self._lock:
            self._cut(max(self._filled.values()))

    def windows(self) -> Windows:
        """A copy of the ring, oldest first; positions are by the time of each class that was ever seen."""
        with self._lock:
            rows = np.arange(max(0, self._count - self._capacity), self._count) % self._capacity
            y, offset = self._y[rows], self._offset[rows]
            total = np.array([self._seen[int(label)] for label in y], np.int64)
            return Windows(
                {name: x[rows] for name, x in self._x.items()},
                y,
                np.zeros(len(rows), np.int64),
                (offset / np.maximum(total, 1)).astype(np.float32),
                (self._subject,),
                ((offset + self._grid.samples) / np.maximum(total, 1)).astype(np.float32),
                self.dropped,
            )

    def latest(self) -> tuple[float, float, dict[str, Floats]] | None:
        """Start, end and modality -> (1, channels, samples) of the newest stretch, labelled or not, for inference.

        Modalities with a gap in it are left out; None before there is one.
        """
        with self._lock:
            end = self._complete()
            start = end - self._grid.samples
            if self._empty or start < self._base:
                return None
            x = {name: self._stretch(name, start).copy()[None] for name in self._channels}
            whole = {name: values for name, values in x.items() if not np.isnan(values).any()}
            return self._origin + start / self._rate, self._origin + end / self._rate, whole

    def _fits(self, samples: Samples) -> bool:
        if samples.rate_hz != self._rate:
            raise ValueError(f"samples at {samples.rate_hz:g} Hz for windows at {self._rate:g} Hz: resample them first")
        n = len(samples)
        shaped = all(s.shape == (n, self._channels.get(name)) for name, s in samples.streams.items())
        right = len(samples.labels) in (0, n) and np.isfinite(samples.time)
        return bool(n and samples.streams and shaped and right)

    def _restart(self, origin: float, first: bool = False) -> None:
        """Begin a clock of our own at `origin`; what has not been cut is forgotten, the ring stays."""
        self._origin, self._empty = origin, first
        self._base = self._done = 0  # grid index of the first pending sample; all before `done` has been cut
        self._filled = dict.fromkeys(self._channels, 0)  # modality -> end of what has arrived
        self._pending: dict[str, Floats] = {n: np.empty((0, c), np.float32) for n, c in self._channels.items()}
        self._labels: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._run, self._next = UNLABELLED, 0  # label before `done`, start of the run's next window

    def _place(self, name: str, at: float, values: Floats, labels: Ints) -> None:
        """Write a piece where it belongs, or refuse what is too late."""
        begin = self._filled[name] if abs(at - self._filled[name]) <= SLACK_S * self._rate else round(at)
        if begin < self._filled[name] or begin < self._done:
            self.refused += 1
            return
        end = begin + len(values)
        self._reserve(end)
        self._pending[name][begin - self._base : end - self._base] = values
        self._filled[name] = end
        if len(labels):
            here = self._labels[begin - self._base : end - self._base]
            here[labels != UNLABELLED] = labels[labels != UNLABELLED]

    def _reserve(self, end: int) -> None:
        """Make the pending samples reach `end`; they are short, so growing copies little."""
        more = end - self._base - len(self._labels)
        if more > 0:
            self._labels = np.concatenate([self._labels, np.full(more, UNLABELLED, np.int64)])
            for name, channels in self._channels.items():
                gap = np.full((more, channels), np.nan, np.float32)
                self._pending[name] = np.concatenate([self._pending[name], gap])

    def _complete(self) -> int:
        """The end of what every living modality has delivered; at the end of a stream, of all that was cut."""
        newest = max(self._filled.values())
        alive = [end for end in self._filled.values() if end > newest - LAG_S * self._rate]
        return max(self._done, min(alive))

    def _cut(self, until: int) -> None:
        """Cut the windows that lie before grid index `until`, and forget the samples that no later one needs."""
        if until <= self._done:
            return
        fresh = self._labels[self._done - self._base : until - self._base]
        stood = self._done
        for begin, end, label in runs(fresh):
            if begin > 0 or label != self._run:
                self._next = stood + begin
            before = self._seen.get(label, 0)
            while self._next + self._grid.samples <= stood + end:
                self._keep(label, before + self._next - (stood + begin))
                self._next += self._grid.step
            self._seen[label] = before + end - begin
        self._run = int(fresh[-1])
        self._done = until
        needed = min(until - self._grid.samples, self._next if self._run != UNLABELLED else until)
        self._forget(needed)

    def _keep(self, label: int, offset: int) -> None:
        row = self._count % self._capacity
        stretches = {name: self._stretch(name, self._next) for name in self._channels}
        if any(np.isnan(values).any() for values in stretches.values()):
            self.dropped += 1
            return
        for name, values in stretches.items():
            self._x[name][row] = values
        self._y[row], self._offset[row] = label, offset
        self._count += 1

    def _stretch(self, name: str, start: int) -> Floats:
        """(channels, samples) from the pending samples."""
        begin = start - self._base
        stretch: Floats = self._pending[name][begin : begin + self._grid.samples].T
        return stretch

    def _forget(self, needed: int) -> None:
        spare = needed - self._base
        if spare > 0:
            self._labels = self._labels[spare:].copy()
            self._pending = {name: values[spare:].copy() for name, values in self._pending.items()}
            self._base = needed
