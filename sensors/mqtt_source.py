"""Sensors of other nodes, on topics <prefix>/<modality>. Knows no client: whoever has one hands messages in.

    {"time": 1700000000.25, "rate": 50.0, "values": [[x, y, z], ...], "labels": [3, ...]}

as JSON: `time` of the first row in seconds since the epoch, rows at `rate` Hz, null for a missing value; `labels` may
be left out. Simple nodes may send one bare sample instead, a number or a list of numbers, timed by its arrival.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sensors.pace import Pace
from sensors.recording import UNLABELLED, Modality
from sensors.stream import Samples

_WAITING = 1000  # pieces that may wait to be read; beyond, the oldest go and are counted
_LONGEST = 1 << 20  # bytes of a message


class BadSamples(ValueError):
    """A message that holds no samples of its modality: which field, what was expected."""


def encode(samples: Samples, modality: str) -> bytes:
    """One modality of a piece as a message."""
    stream = samples.streams[modality]
    values: list[Any] = stream.tolist()
    if not np.isfinite(stream).all():
        values = [[v if math.isfinite(v) else None for v in row] for row in values]
    plain: dict[str, Any] = {"time": samples.time, "rate": samples.rate_hz, "values": values}
    if len(samples.labels):
        plain["labels"] = samples.labels.tolist()
    return json.dumps(plain, separators=(",", ":")).encode()


def decode(payload: bytes, modality: Modality, arrival: Callable[[], float] = time.time) -> Samples:
    """A message as samples of `modality`; `arrival` times a bare sample. Raises BadSamples, nothing else."""
    plain = _json(payload, modality.name)
    if not isinstance(plain, dict):
        row = _table([plain if isinstance(plain, list) else [plain]], modality)
        return Samples(arrival(), modality.rate_hz, {modality.name: row})
    at, rate = _number(plain, "time", modality), _number(plain, "rate", modality)
    if not 0 < rate <= 1e6:
        raise BadSamples(f"{modality.name}: rate is {rate:g}, expected Hz above 0")
    values = _table(plain.get("values"), modality)
    labels = plain.get("labels", [])
    known = isinstance(labels, list) and all(type(v) is int and UNLABELLED <= v < 2**31 for v in labels)
    if not known or len(labels) not in (0, len(values)):
        raise BadSamples(f"{modality.name}: labels, expected {len(values)} class indices from {UNLABELLED} on")
    return Samples(at, rate, {modality.name: values}, np.array(labels, np.int64))


def _json(payload: bytes, name: str) -> Any:
    if len(payload) > _LONGEST:
        raise BadSamples(f"{name}: {len(payload):,} bytes, at most {_LONGEST:,} are read")
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise BadSamples(f"{name}: not JSON ({type(error).__name__})") from None


def _number(plain: dict[str, Any], key: str, modality: Modality) -> float:
    value = plain.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e300:
        raise BadSamples(f"{modality.name}: {key} is {str(value)[:20]!r}, expected a finite number")
    return float(value)


def _table(rows: Any, modality: Modality) -> Any:
    """(n, channels) float32, null as nan."""
    width = len(modality.channels)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and len(row) == width for row in rows):
        raise BadSamples(f"{modality.name}: expected rows of {width} numbers")
    if not all(v is None or (type(v) in (int, float) and abs(v) < 3e38) for row in rows for v in row):
        raise BadSamples(f"{modality.name}: values, expected finite numbers or null")
    return np.array([[math.nan if v is None else v for v in row] for row in rows], np.float32)


class TopicSource:
    """Topics as a source. `subscribe` is called with the topics at `open`; messages come in by `feed` from any thread.

    modalities   what is taken; rate_hz of each counts for bare samples
    `refused` counts messages that could not be read (`last_error`), `dropped` pieces that nobody read in time.
    """

    def __init__(
        self,
        prefix: str,
        modalities: Sequence[Modality],
        subscribe: Callable[[Sequence[str]], None],
        unsubscribe: Callable[[Sequence[str]], None] = lambda topics: None,
    ) -> None:
        self.modalities = tuple(modalities)
        self.topics = tuple(f"{prefix}/{m.name}" for m in modalities)
        self.refused = self.dropped = 0
        self.last_error = ""
        self._by_topic = dict(zip(self.topics, self.modalities, strict=True))
        self._subscribe, self._unsubscribe = subscribe, unsubscribe
        self._pace = {m.name: Pace(m.rate_hz) for m in modalities}
        self._pieces: queue.Queue[Samples | None] = queue.Queue(_WAITING)
        self._ended = False

    def open(self) -> None:
        self._subscribe(self.topics)

    def feed(self, topic: str, payload: bytes) -> None:
        """Take in a message; other topics are ignored. Never blocks or raises, so a network thread may call it."""
        modality = self._by_topic.get(topic)
        if modality is None or self._ended:
            return
        pace = self._pace[modality.name]
        try:
            self._put(decode(payload, modality, lambda: pace.stamp(1, time.time())))
        except BadSamples as error:
            self.refused += 1
            self.last_error = str(error)

    def read(self, timeout: float | None = None) -> Samples | None:
        if self._ended:
            return None
        try:
            return self._pieces.get(timeout=timeout)
        except queue.Empty:
            return None

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._unsubscribe(self.topics)
            self._put(None)

    def _put(self, samples: Samples | None) -> None:
        while True:
            try:
                self._pieces.put_nowait(samples)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._pieces.get_nowait()
                    self.dropped += 1
