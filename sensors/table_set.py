"""Data sets that come as one large text table a subject: how they are read, whatever their columns mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensors.archive import Archive
from sensors.cache import Arrays, cached, key_of
from sensors.gaps import hold, interpolate
from sensors.recording import UNLABELLED, DataError, Floats, Modality, Recording
from sensors.text import Form, Table, tables


@dataclass(frozen=True)
class Layout:
    """What a table means.

    columns      modality name -> its columns in the file, from 0
    codes        label in the file -> class index; UNLABELLED for what is dropped
    keep         every keep-th row is kept, after gaps were filled
    gap_s        longest gap that is interpolated
    held         modalities that are slower than the rows: each value stands for up to this many seconds
    skip         members with this in their path belong to something else
    """

    name: str
    pattern: str
    expected: str
    width: int
    delimiter: str
    rate_hz: float
    modalities: tuple[Modality, ...]
    columns: Mapping[str, tuple[int, ...]]
    activities: tuple[str, ...]
    codes: Mapping[int, int]
    label: int
    window_s: float
    overlap: float
    time: int | None = None
    keep: int = 1
    gap_s: float = 0.5
    held: Mapping[str, float] = field(default_factory=dict)
    skip: str = "//"

    @property
    def values(self) -> list[int]:
        """The modalities' columns, one modality after the other."""
        return [c for m in self.modalities for c in self.columns[m.name]]

    @property
    def use(self) -> list[int]:
        """The columns that are read, in the file's order."""
        clock = [] if self.time is None else [self.time]
        return sorted([self.label, *clock, *self.values])

    @property
    def form(self) -> Form:
        """How the text looks."""
        return Form(self.width, self.delimiter, None if len(self.use) == self.width else tuple(self.use))


class TableSet:
    """A data set of one table a subject, in a folder or zip file. A modality whose columns are all nan is absent.

    One recording a subject, cut only where its clock jumps further than a gap that could be filled.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.name, self.rate_hz = layout.name, layout.rate_hz / layout.keep
        self.window_s, self.overlap, self.activities = layout.window_s, layout.overlap, layout.activities
        self._layout = layout
        self._archive = Archive(path, layout.pattern, layout.expected)
        self._members: dict[str, str] = {}
        for member, match in self._archive.members.items():
            if layout.skip in f"/{member}":
                continue
            subject = match.group(1)
            if subject in self._members:
                both = f"{self._members[subject]} and {member}"
                raise DataError(path, f"two files for subject {subject} ({both}), expected one")
            self._members[subject] = member
        if not self._members:
            raise DataError(path, f"holds none of the recordings, expected {layout.expected}")
        owners = [self._owned(subject) for subject in self.subjects()]
        self.modalities = tuple(m for m in layout.modalities if any(m.name in owned for owned in owners))

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted(self._members, key=int))

    def recordings(self, subject: str) -> Iterator[Recording]:
        """In time order, at `rate_hz`. KeyError for a subject that is not there."""
        member = self._members[subject]
        arrays = cached(self._key(member, "recording"), lambda: self._parse(member))
        owned = [m for m in self._layout.modalities if m.name in arrays]
        for begin, end in pairwise(arrays["borders"].tolist()):
            streams = {m.name: np.array(arrays[m.name][begin:end]) for m in owned}
            yield Recording(subject, self.rate_hz, np.array(arrays["labels"][begin:end], np.int64), streams)

    def _key(self, member: str, what: str) -> str:
        return key_of(self.name, self._archive.files([member]), member, what, repr(self._layout))

    def _owned(self, subject: str) -> set[str]:
        """The modalities that this subject wore; reads no further than to the first sample of each."""
        member, layout = self._members[subject], self._layout

        def look() -> Arrays:
            seen = np.zeros(len(layout.use), bool)
            with self._archive.reading() as reading, reading.open(member) as stream:
                for table in tables(stream, layout.form, reading.label(member)):
                    seen |= ~np.isnan(table).all(axis=0)
                    if seen.all():
                        break
            return {"seen": seen}

        seen = dict(zip(layout.use, cached(self._key(member, "owned"), look)["seen"].tolist(), strict=True))
        return {m.name for m in layout.modalities if all(seen[c] for c in layout.columns[m.name])}

    def _parse(self, member: str) -> Arrays:
        """labels (T,), borders (recordings + 1,), and (T, channels) float32 of every modality that is there."""
        with self._archive.reading() as reading, reading.open(member) as stream:
            label = reading.label(member)
            codes, times, values = _collect(tables(stream, self._layout.form, label), self._layout, label)
        labels = np.full(max(self._layout.codes) + 1, UNLABELLED, np.int16)
        for code, index in self._layout.codes.items():
            labels[code] = index
        pieces = [
            self._finish(labels[codes[a:b]], values[a:b], None if times is None else times[a:b])
            for a, b in _stretches(times, len(codes), self._layout)
        ]
        lengths = [len(piece["labels"]) for piece in pieces]
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        absent = [m.name for m in self._layout.modalities if np.isnan(whole[m.name]).all(axis=0).any()]
        return {n: v for n, v in whole.items() if n not in absent} | {"borders": np.cumsum([0, *lengths])}

    def _finish(self, labels: npt.NDArray[np.int16], values: Floats, times: Table | None) -> Arrays:
        """One stretch: rows put on the clock, gaps filled, rate reduced."""
        layout, rate = self._layout, self._layout.rate_hz
        if times is not None:
            labels, values = _on_clock(labels, values, times, rate)
        done: dict[str, npt.NDArray[Any]] = {"labels": labels[:: layout.keep]}
        at = 0
        for m in layout.modalities:
            channels = values[:, at : at + len(layout.columns[m.name])]
            at += channels.shape[1]
            if m.name in layout.held:
                hold(channels, round(layout.held[m.name] * rate))
            else:
                interpolate(channels, round(layout.gap_s * rate))
            done[m.name] = np.ascontiguousarray(channels[:: layout.keep])
        return done


def _collect(rows: Iterator[Table], layout: Layout, file: str) -> tuple[npt.NDArray[np.int64], Table | None, Floats]:
    """Label codes (T,), times (T,) and values (T, channels) float32, each row checked."""
    codes: list[npt.NDArray[np.int64]] = []
    times: list[Table] = []
    values: list[Floats] = []
    place = {column: n for n, column in enumerate(layout.use)}
    pick = [place[c] for c in layout.values]
    row, before = 1, -np.inf
    for table in rows:
        codes.append(_codes(table[:, place[layout.label]], layout, file, row))
        values.append(table[:, pick].astype(np.float32))
        if layout.time is not None:
            now = table[:, place[layout.time]]
            _check_clock(np.concatenate([[before], now]), file, row)
            times.append(now.copy())
            before = float(now[-1])
        row += len(table)
    if not codes:
        raise DataError(file, f"holds no rows, expected {layout.width} columns of recordings")
    return np.concatenate(codes), np.concatenate(times) if times else None, np.concatenate(values)


def _codes(labels: Table, layout: Layout, file: str, first_row: int) -> npt.NDArray[np.int64]:
    """Label codes as integers. DataError for one that the layout does not know."""
    highest = max(layout.codes)
    known = np.zeros(highest + 1, bool)
    known[list(layout.codes)] = True
    within = (labels >= 0) & (labels <= highest)  # nan is not
    codes = np.where(within, labels, 0).astype(np.int64)
    wrong = np.flatnonzero(~(within & known[codes] & (codes == labels)))
    if len(wrong):
        allowed = ", ".join(map(str, sorted(layout.codes)))
        raise DataError(file, f"activity {labels[wrong[0]]:g}, expected one of {allowed}", first_row + int(wrong[0]))
    return codes


def _check_clock(clock: Table, file: str, first_row: int) -> None:
    """DataError where time stands still or runs backwards; clock[0] is the time before `first_row`."""
    back = np.flatnonzero(~(np.diff(clock) > 0))
    if len(back):
        at = int(back[0])
        raise DataError(file, f"time {clock[at + 1]:g} s, expected one after {clock[at]:g} s", first_row + at)


def _stretches(times: Table | None, rows: int, layout: Layout) -> list[tuple[int, int]]:
    """(begin, end) of rows between which the clock does not jump further than a fillable gap."""
    jumps = [] if times is None else (np.flatnonzero(np.diff(times) > layout.gap_s + 1.5 / layout.rate_hz) + 1).tolist()
    return list(zip([0, *jumps], [*jumps, rows], strict=True))


def _on_clock(
    labels: npt.NDArray[np.int16], values: Floats, times: Table, rate_hz: float
) -> tuple[npt.NDArray[np.int16], Floats]:
    """Rows where their times say; times that are missing become rows of NaN with the label before them."""
    index = np.round((times - times[0]) * rate_hz).astype(np.int64)
    if index[-1] == len(index) - 1 and np.array_equal(index, np.arange(len(index))):
        return labels, values
    rows = int(index[-1]) + 1
    placed = np.full((rows, values.shape[1]), np.nan, np.float32)
    placed[index] = values
    source = np.zeros(rows, np.int64)
    source[index] = np.arange(len(index))
    return labels[np.maximum.accumulate(source)], placed
