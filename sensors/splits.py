"""Training, validation and test: by held-out subject, and by contiguous time within each (subject, class)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sensors.windows import Windows

# Positions are float32 fractions of at most a few hundred thousand samples: finer than a sample, coarser than rounding.
_SLACK = 1e-6


@dataclass(frozen=True)
class Split:
    """Windows that no learner may mix. `held_out` has all windows of the subjects that nobody trains on."""

    train: Windows
    validation: Windows
    test: Windows
    held_out: Windows


def between(windows: Windows, begin: float, end: float) -> Windows:
    """The windows that lie wholly in [begin, end] of their (subject, class)."""
    return windows.take((windows.position >= begin - _SLACK) & (windows.stop <= end + _SLACK))


def split(
    windows: Windows, held_out_subjects: Sequence[str] = (), train: float = 16 / 24, validation: float = 4 / 24
) -> Split:
    """First `train` of the time of every (subject, class), then `validation`, the rest is the test.

    A window that overlaps two parts belongs to neither. ValueError for an unknown subject or impossible fractions.
    """
    unknown = set(held_out_subjects) - set(windows.subjects)
    if unknown:
        raise ValueError(f"cannot hold out {sorted(unknown)}: the subjects are {list(windows.subjects)}")
    if not (0 < train <= 1 and validation >= 0 and train + validation <= 1 + _SLACK):
        raise ValueError(f"train {train} and validation {validation} are no fractions of the whole")
    seen = windows.of([s for s in windows.subjects if s not in held_out_subjects])
    middle = train + validation
    return Split(
        between(seen, 0.0, train),
        between(seen, train, middle),
        between(seen, middle, 1.0),
        windows.of(held_out_subjects),
    )


def share(windows: Windows, k: int, of: int) -> Windows:
    """The k-th (from 0) of `of` contiguous shares of every (subject, class) of these windows, alike in number.

    Windows that overlap between neighbouring shares stay with the earlier one, so that no two devices hold a sample
    twice. Shares are cut along the windows given, so a split's training part is divided evenly.
    """
    if not 0 <= k < of:
        raise ValueError(f"share {k} of {of}: expected 0 to {of - 1}")
    chosen = []
    for mine in groups(windows):
        bounds = np.linspace(0, len(mine), of + 1).round().astype(int)
        part = mine[bounds[k] : bounds[k + 1]]
        taken = windows.stop[mine[bounds[k] - 1]] if k and bounds[k] else -1.0
        chosen.append(part[windows.position[part] >= taken - _SLACK])
    return windows.take(np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64))


def groups(windows: Windows) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Indices of every (subject, class) in time order."""
    order = np.lexsort((windows.position, windows.y, windows.subject))
    if len(order):
        keys = np.stack([windows.subject[order], windows.y[order]])
        yield from np.split(order, np.flatnonzero(np.diff(keys, axis=1).any(axis=0)) + 1)


def leave_one_out(windows: Windows, train: float = 16 / 24, validation: float = 4 / 24) -> Iterator[tuple[str, Split]]:
    """Every subject in turn as the held-out one."""
    for subject in windows.subjects:
        yield subject, split(windows, (subject,), train, validation)
