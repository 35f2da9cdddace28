"""Windows: what is learned from. Cut from recordings, never across a label's or a recording's border."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from sensors.recording import UNLABELLED, DataSet, Floats, Ints, Recording


@dataclass(frozen=True)
class Windows:
    """N windows of the same length on the same clock.

    x          modality -> (N, channels, samples) float32; raw units until `scale`d
    y          (N,) class index
    subject    (N,) index into `subjects`
    position   (N,) start of the window within its (subject, class) in [0, 1), by time: splits by contiguous time and
               shares of one subject between devices are cuts along it
    stop       (N,) end of the window on the same scale, at most 1
    dropped    windows that were left out because a sensor had a gap in them
    """

    x: dict[str, Floats]
    y: Ints
    subject: Ints
    position: Floats
    subjects: tuple[str, ...]
    stop: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    dropped: int = 0

    def __post_init__(self) -> None:
        if len(self.stop) != len(self.y):  # not said: as if windows had no extent
            object.__setattr__(self, "stop", self.position)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: Ints) -> Windows:
        """The windows at these indices, or where this boolean mask is true."""
        return Windows(
            {name: values[chosen] for name, values in self.x.items()},
            self.y[chosen],
            self.subject[chosen],
            self.position[chosen],
            self.subjects,
            self.stop[chosen],
        )

    def only(self, modalities: Sequence[str]) -> Windows:
        """The same windows seen through fewer sensors; no copy."""
        return Windows(
            {m: self.x[m] for m in modalities if m in self.x},
            self.y,
            self.subject,
            self.position,
            self.subjects,
            self.stop,
            self.dropped,
        )

    def of(self, subjects: Iterable[str]) -> Windows:
        """The windows of these subjects."""
        wanted = [self.subjects.index(s) for s in subjects if s in self.subjects]
        return self.take(np.isin(self.subject, wanted))


@dataclass(frozen=True)
class Grid:
    """Where windows lie: `samples` long, a new one every `step` samples."""

    samples: int
    step: int

    @classmethod
    def of(cls, rate_hz: float, window_s: float, overlap: float) -> Grid:
        """From seconds and the fraction that neighbours share. ValueError where windows would be empty or stuck."""
        samples = round(window_s * rate_hz)
        if samples < 1 or not 0.0 <= overlap < 1.0:
            raise ValueError(f"windows of {window_s} s at {rate_hz} Hz, overlap {overlap}: need a sample, and 0 to < 1")
        return cls(samples, max(1, round(samples * (1.0 - overlap))))


def runs(labels: Ints) -> Iterator[tuple[int, int, int]]:
    """(begin, end, label) of the stretches of one label, the unlabelled ones left out."""
    if not len(labels):
        return
    borders = np.flatnonzero(np.diff(labels)) + 1
    for begin, end in zip([0, *borders], [*borders, len(labels)], strict=True):
        if labels[begin] != UNLABELLED:
            yield int(begin), int(end), int(labels[begin])


def cut(
    recordings: Iterable[Recording],
    dataset: DataSet,
    window_s: float | None = None,
    overlap: float | None = None,
    modalities: Sequence[str] | None = None,
) -> Windows:
    """Windows of these recordings, in their order; each subject's recordings must come in time order.

    modalities    what to keep; by default every modality that all the recordings have. A window in which one of them
                  has a gap is dropped and counted
    ValueError where a recording lacks a modality that was asked for.
    """
    grid = Grid.of(
        dataset.rate_hz,
        dataset.window_s if window_s is None else window_s,
        dataset.overlap if overlap is None else overlap,
    )
    wanted = [m for m in dataset.modalities if modalities is None or m.name in modalities]
    cuts = [_Cut.of(recording, grid, [m.name for m in wanted], modalities is not None) for recording in recordings]
    names = [m for m in wanted if all(m.name in c.x for c in cuts)]
    subjects = tuple(dict.fromkeys(c.subject for c in cuts))
    position, stop = _positions(cuts, grid)
    whole = _joined([np.logical_and.reduce([np.ones(len(c.y), bool), *(c.whole[m.name] for m in names)]) for c in cuts])
    everything = Windows(
        {m.name: _stacked([c.x[m.name] for c in cuts], (len(m.channels), grid.samples)) for m in names},
        _joined([c.y for c in cuts]).astype(np.int64),
        np.repeat([subjects.index(c.subject) for c in cuts], [len(c.y) for c in cuts]).astype(np.int64),
        position,
        subjects,
        stop,
    )
    if whole.all():
        return everything
    kept = everything.take(whole.astype(bool))
    return Windows(kept.x, kept.y, kept.subject, kept.position, subjects, kept.stop, int((~whole.astype(bool)).sum()))


@dataclass(frozen=True)
class _Cut:
    """One recording's windows, gaps still in them."""

    subject: str
    y: Ints
    begin: Ints  # (n,) samples of the same label that lie before the window in this recording
    seen: dict[int, int]  # label -> samples in this recording
    x: dict[str, Floats]
    whole: dict[str, npt.NDArray[np.bool_]]

    @classmethod
    def of(cls, recording: Recording, grid: Grid, wanted: Sequence[str], strict: bool) -> _Cut:
        starts, y, begin = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        seen: dict[int, int] = {}
        for first, end, label in runs(recording.labels):
            here = np.arange(first, end - grid.samples + 1, grid.step)
            starts.append(here)
            y.append(np.full(len(here), label))
            begin.append(here - first + seen.get(label, 0))
            seen[label] = seen.get(label, 0) + end - first
        at = np.concatenate(starts)
        x, whole = {}, {}
        for name in wanted:
            if name in recording.streams:
                x[name], whole[name] = _gather(recording.streams[name], at, grid.samples)
            elif strict:
                raise ValueError(f"subject {recording.subject} has no modality {name!r}; it has {[*recording.streams]}")
        return cls(recording.subject, np.concatenate(y), np.concatenate(begin), seen, x, whole)


def _gather(stream: Floats, starts: Ints, samples: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(n, channels, samples) and which of the n have no gap."""
    if not len(starts):
        return np.empty((0, stream.shape[1], samples), np.float32), np.empty(0, bool)
    missing = np.concatenate([[0], np.cumsum(np.isnan(stream).any(axis=1))])
    x = sliding_window_view(stream, samples, axis=0)[starts].astype(np.float32, copy=False)
    return x, missing[starts + samples] == missing[starts]


def _positions(cuts: Sequence[_Cut], grid: Grid) -> tuple[Floats, Floats]:
    """Start and end of every window as a fraction of what its subject has of its class."""
    total: dict[tuple[str, int], int] = {}
    before = []
    for c in cuts:
        before.append(c.begin + np.array([total.get((c.subject, int(label)), 0) for label in c.y], np.int64))
        for label, samples in c.seen.items():
            total[c.subject, label] = total.get((c.subject, label), 0) + samples
    whole = _joined([np.array([total[c.subject, int(label)] for label in c.y], np.int64) for c in cuts])
    start = _joined(before)
    share = np.maximum(whole, 1)
    return (start / share).astype(np.float32), ((start + grid.samples) / share).astype(np.float32)


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _stacked(parts: Sequence[Floats], shape: tuple[int, int]) -> Floats:
    return np.concatenate(parts) if parts else np.empty((0, *shape), np.float32)
