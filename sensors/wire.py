"""Samples as JSON, for sensor topics that any MQTT client can write and read.

    <prefix>/about        retained: {"modalities": {name: {"channels": [...], "unit": "m/s2", "rate": 50.0}},
                                     "activities": [...]}
    <prefix>/<modality>   {"time": 1700000000.25, "rate": 50.0, "values": [[x, y, z], ...], "labels": [3, ...]}

`time` is of the first row in seconds, rows follow each other at `rate` Hz; null is a missing sample. `labels` may be
left out; -1 is unlabelled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sensors.recording import UNLABELLED, Modality
from sensors.stream import Samples

ABOUT = "about"
LONGEST = 100_000  # rows in one message; more is an attack or a mistake
LATEST = 1e11  # seconds: milliseconds since the epoch are beyond it, and so is what a grid's ticks cannot count


class BadSamples(ValueError):
    """A message that is none of ours: which field, what was expected."""


def encode(samples: Samples, modality: str) -> bytes:
    """One modality of a piece."""
    stream = samples.streams[modality]
    values: list[Any] = stream.tolist()
    if np.isnan(stream).any():
        values = [[None if math.isnan(v) else v for v in row] for row in values]
    plain: dict[str, Any] = {"time": samples.time, "rate": samples.rate_hz, "values": values}
    if len(samples.labels):
        plain["labels"] = samples.labels.tolist()
    return json.dumps(plain, separators=(",", ":")).encode()


def decode(payload: bytes | memoryview, modality: Modality) -> Samples:
    """The piece of `modality` in a message. Raises BadSamples; nothing else, whatever the bytes."""
    try:
        plain = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise BadSamples(f"{modality.name}: not JSON ({error})") from None
    if not isinstance(plain, dict):
        raise BadSamples(f"{modality.name}: expected an object with time, rate and values")
    time, rate = (_number(plain.get(key), key, modality) for key in ("time", "rate"))
    if not 0 < rate <= 1e6:
        raise BadSamples(f"{modality.name}: rate is {rate:g}, expected Hz above 0")
    rows = plain.get("values")
    if not isinstance(rows, list) or not 0 < len(rows) <= LONGEST:
        raise BadSamples(f"{modality.name}: values, expected 1 to {LONGEST} rows")
    if not max(abs(time), abs(time + (len(rows) - 1) / rate)) < LATEST:
        raise BadSamples(f"{modality.name}: time is {time:g} of {len(rows)} rows at {rate:g} Hz, expected seconds")
    width = len(modality.channels)
    if not all(isinstance(row, list) and len(row) == width and all(map(_is_value, row)) for row in rows):
        raise BadSamples(f"{modality.name}: values, expected rows of {width} numbers or null")
    with np.errstate(over="ignore"):
        stream = np.array(rows, np.float64).astype(np.float32)
    if np.isinf(stream).any():
        raise BadSamples(f"{modality.name}: values, expected finite numbers")
    labels = plain.get("labels", [])
    if not isinstance(labels, list) or len(labels) not in (0, len(rows)) or not all(map(_is_label, labels)):
        raise BadSamples(f"{modality.name}: labels, expected {len(rows)} class indices from {UNLABELLED} on")
    return Samples(time, rate, {modality.name: stream}, np.array(labels, np.int64))


def about(modalities: Iterable[Modality], activities: Sequence[str]) -> bytes:
    """What the topics beside it carry."""
    described = {m.name: {"channels": list(m.channels), "unit": m.unit, "rate": m.rate_hz} for m in modalities}
    return json.dumps({"modalities": described, "activities": list(activities)}).encode()


def read_about(payload: bytes | memoryview) -> tuple[tuple[Modality, ...], tuple[str, ...]]:
    """The inverse of `about`. Raises BadSamples."""
    try:
        plain = json.loads(bytes(payload))
        modalities = tuple(
            Modality(str(name), tuple(map(str, m["channels"])), str(m["unit"]), float(m["rate"]))
            for name, m in plain["modalities"].items()
        )
        return modalities, tuple(map(str, plain["activities"]))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise BadSamples(f"{ABOUT}: expected modalities and activities ({type(error).__name__})") from None


def _number(value: object, key: str, modality: Modality) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        raise BadSamples(f"{modality.name}: {key} is {str(value)[:20]!r}, expected a finite number")
    return float(value)


def _finite(value: int | float) -> bool:
    return abs(value) < 1e300  # JSON's integers may be larger than any float


def _is_value(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value))


def _is_label(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and UNLABELLED <= value < 2**31
