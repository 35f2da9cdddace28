"""Sensors of other nodes, on topics <prefix>/<modality>. Knows no client: whoever has one hands messages in.

A message is that of sensors.wire. Simple nodes may send one bare sample instead, a JSON number or list of numbers,
timed by its arrival.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence

import numpy as np

from sensors.inbox import Inbox
from sensors.pace import Pace
from sensors.recording import Modality
from sensors.stream import Samples
from sensors.wire import BadSamples, decode

_LONGEST = 1 << 20  # bytes of a message


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
        self.refused = 0
        self.last_error = ""
        self._by_topic = dict(zip(self.topics, self.modalities, strict=True))
        self._subscribe, self._unsubscribe = subscribe, unsubscribe
        self._pace = {m.name: Pace(m.rate_hz) for m in modalities}
        self._inbox = Inbox()
        self._ended = False

    def open(self) -> None:
        self._subscribe(self.topics)

    def feed(self, topic: str, payload: bytes) -> None:
        """Take in a message; other topics are ignored. Never blocks or raises, so a network thread may call it."""
        modality = self._by_topic.get(topic)
        if modality is None or self._ended:
            return
        try:
            self._inbox.put(self._samples(payload, modality))
        except BadSamples as error:
            self.refused += 1
            self.last_error = str(error)

    def read(self, timeout: float | None = None) -> Samples | None:
        return None if self._ended else self._inbox.get(timeout)

    @property
    def dropped(self) -> int:
        """Pieces that nobody read in time."""
        return self._inbox.dropped

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._unsubscribe(self.topics)
            self._inbox.wake()

    def _samples(self, payload: bytes, modality: Modality) -> Samples:
        if len(payload) > _LONGEST:
            raise BadSamples(f"{modality.name}: {len(payload):,} bytes, at most {_LONGEST:,} are read")
        if payload.lstrip()[:1] == b"{":
            return decode(payload, modality)
        width = len(modality.channels)
        with contextlib.suppress(ValueError, TypeError, OverflowError, RecursionError), np.errstate(over="ignore"):
            row = np.array(json.loads(payload), np.float32).reshape(-1)
            if len(row) == width and np.isfinite(row).all():
                first = self._pace[modality.name].stamp(1, time.time())
                return Samples(first, modality.rate_hz, {modality.name: row[None]})
        raise BadSamples(f"{modality.name}: expected {width} finite numbers, or an object with time, rate and values")
