"""Recordings played as live sensors, from their own pace to as fast as they are taken."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from sensors.recording import UNLABELLED, DataSet, Recording
from sensors.stream import Samples

BREAK_S = 1.0  # silence between stretches that do not follow each other, so that no window spans both


class ReplaySource:
    """One subject's recordings as a Source.

    modalities    what this device owns; by default all that the recording has
    part          (begin, end) of each class's time, as in Windows.position; the rest is not played
    activities    class indices to play; by default all. With a part or activities, unlabelled stretches are skipped
    speed         1.0 is the recorded pace, math.inf as fast as it is read
    piece_s       seconds of samples in a piece; it comes when its last sample has been sensed
    origin        time of the first sample
    loop          begin again at the end, on the same clock
    awake_s       seconds before a piece is due that are not slept: the processor is at hand when it is

    Pieces are due at fixed moments of the monotonic clock, so a late one delays none of those that follow.
    """

    def __init__(
        self,
        dataset: DataSet,
        subject: str,
        modalities: Sequence[str] | None = None,
        *,
        part: tuple[float, float] = (0.0, 1.0),
        activities: Collection[int] | None = None,
        speed: float = 1.0,
        piece_s: float = 0.2,
        origin: float = 0.0,
        loop: bool = False,
        awake_s: float = 0.0,
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed {speed}: expected more than 0; 1 is the recorded pace, inf as fast as possible")
        names = [m.name for m in dataset.modalities]
        unknown = set(modalities or ()) - set(names)
        if unknown:
            raise ValueError(f"{dataset.name} has no modality {sorted(unknown)}; it has {names}")
        self.modalities = tuple(m for m in dataset.modalities if modalities is None or m.name in modalities)
        self._dataset, self._subject, self._part, self._activities = dataset, subject, part, activities
        self._speed, self._origin, self._loop = speed, origin, loop
        self._length = max(1, round(piece_s * dataset.rate_hz))
        self._awake_s = awake_s
        self._closed = threading.Event()
        self._ended = False
        self._over = True  # nothing is left to fetch
        self._pieces: Iterator[Samples] = iter(())
        self._next: Samples | None = None
        self._began = 0.0

    def open(self) -> None:
        """Start the clock. KeyError for a subject that is not there."""
        self._pieces, self._over = self._play(), False
        self._fetch()
        self._began = time.monotonic()

    def read(self, timeout: float | None = None) -> Samples | None:
        upcoming = None if self._closed.is_set() else self._fetch()
        if upcoming is None:
            self._ended = True
            return None
        due = self.due(upcoming)
        wait = due - self._awake_s - time.monotonic()
        if wait > 0 and (self._closed.wait(wait if timeout is None else min(wait, timeout)) or _still(wait, timeout)):
            self._ended = self._closed.is_set()
            return None
        while time.monotonic() < due:
            pass
        self._next = None  # fetched later: a new recording may have to be loaded, and this piece is due
        return upcoming

    @property
    def upcoming(self) -> Samples | None:
        """The piece that `read` will give next, to make ready what can be before it is due; None at the end."""
        return self._fetch()

    def _fetch(self) -> Samples | None:
        if self._next is None and not self._over:
            self._next = next(self._pieces, None)
            self._over = self._next is None
        return self._next

    def due(self, samples: Samples) -> float:
        """When a piece is complete, on the monotonic clock."""
        if math.isinf(self._speed):
            return -math.inf
        return self._began + (samples.time - self._origin + len(samples) / samples.rate_hz) / self._speed

    def seconds(self) -> float:
        """How much will be played in one turn, the silences between stretches left out; reads all of it."""
        return sum(len(labels) for labels, _ in self._stretches()) / self._dataset.rate_hz

    @property
    def ended(self) -> bool:
        return self._ended or self._closed.is_set() or self._over

    def close(self) -> None:
        self._closed.set()

    def _play(self) -> Iterator[Samples]:
        now = self._origin
        while True:
            started = now
            for labels, streams in self._stretches():
                for begin in range(0, len(labels), self._length):
                    end = min(begin + self._length, len(labels))
                    piece = {name: stream[begin:end] for name, stream in streams.items()}
                    yield Samples(now + begin / self._dataset.rate_hz, self._dataset.rate_hz, piece, labels[begin:end])
                now += len(labels) / self._dataset.rate_hz + BREAK_S
            if not self._loop or now == started:
                return

    def _stretches(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Labels and streams of what is to be played, stretch by stretch."""
        names = [m.name for m in self.modalities]
        everything = self._part == (0.0, 1.0) and self._activities is None
        totals = {} if everything else self._totals()
        before: dict[int, int] = {}
        for recording in self._dataset.recordings(self._subject):
            chosen = np.ones(len(recording.labels), bool) if everything else self._chosen(recording, before, totals)
            borders = np.flatnonzero(np.diff(chosen)) + 1
            for begin, end in zip([0, *borders], [*borders, len(chosen)], strict=True):
                if end > begin and chosen[begin]:
                    streams = {n: recording.streams[n][begin:end] for n in names if n in recording.streams}
                    if streams:
                        yield recording.labels[begin:end], streams

    def _chosen(self, recording: Recording, before: dict[int, int], totals: dict[int, int]) -> np.ndarray:
        """Which samples lie in the part, class by class."""
        chosen = np.zeros(len(recording.labels), bool)
        for label, total in totals.items():
            if self._activities is not None and label not in self._activities:
                continue
            mine = np.flatnonzero(recording.labels == label)
            position = before.get(label, 0) + np.arange(len(mine))
            before[label] = before.get(label, 0) + len(mine)
            begin, end = (round(edge * total) for edge in self._part)
            chosen[mine[(position >= begin) & (position < end)]] = True
        return chosen

    def _totals(self) -> dict[int, int]:
        totals: dict[int, int] = {}
        for recording in self._dataset.recordings(self._subject):
            for label, samples in zip(*np.unique(recording.labels, return_counts=True), strict=True):
                if label != UNLABELLED:
                    totals[int(label)] = totals.get(int(label), 0) + int(samples)
        return totals


def _still(wait: float, timeout: float | None) -> bool:
    """Whether the piece is not due after `timeout` seconds."""
    return timeout is not None and timeout < wait
