"""Devices from subjects: who wears which sensors and holds which windows.

The draw uses numpy's legacy generator, whose numbers are promised never to change: the same seed gives the same fleet
on any machine and with any numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sensors.splits import groups
from sensors.windows import Windows

How = Literal["contiguous", "dirichlet", "subject"]


@dataclass(frozen=True)
class Tier:
    """`devices` of one kind. `modalities` is what each owns; several tuples are given out in turn."""

    name: str
    devices: int
    modalities: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Holding:
    """What one device has: its sensors and the rows of the windows it trains on, in time order within a class."""

    device: str
    tier: str
    modalities: tuple[str, ...]
    subject: str
    rows: npt.NDArray[np.int64]

    def of(self, windows: Windows) -> Windows:
        """The device's own windows, seen through its own sensors."""
        return windows.take(self.rows).only(self.modalities)


def partition(
    windows: Windows, tiers: Sequence[Tier], how: How = "contiguous", *, seed: int = 0, alpha: float = 0.5
) -> tuple[Holding, ...]:
    """Give the windows to the devices, in the tiers' order. No device holds a sample of another.

    contiguous   subjects are worn by devices in turn; those of one subject share the time of its every class evenly
    dirichlet    the same, but each class is shared in proportions drawn from a symmetric Dirichlet(`alpha`): label skew
    subject      one device a subject, which then holds all of it; subjects without a device stay outside

    ValueError where there are more devices than can be served, or a modality that no window has.
    """
    slots = [(tier, k) for tier in tiers for k in range(tier.devices)]
    _check(windows, tiers, len(slots), how, alpha)
    rng = np.random.RandomState(seed)
    subjects = [windows.subjects[n] for n in rng.permutation(len(windows.subjects))]
    crews: dict[str, list[int]] = {}
    for turn, slot in enumerate(np.concatenate([_mixed(rng, tiers, t) for t in range(len(tiers))])):
        crews.setdefault(subjects[turn % len(subjects)], []).append(int(slot))
    held: dict[int, npt.NDArray[np.int64]] = {}
    wearer: dict[int, str] = {}
    for subject in windows.subjects:
        crew = [crews[subject][n] for n in rng.permutation(len(crews.get(subject, ())))] if subject in crews else []
        rows = _shared(windows, subject, len(crew), alpha if how == "dirichlet" else None, rng)
        for slot, mine in zip(crew, rows, strict=True):
            held[slot], wearer[slot] = mine, subject
    return tuple(
        Holding(f"{tier.name}-{k + 1}", tier.name, tier.modalities[k % len(tier.modalities)], wearer[n], held[n])
        for n, (tier, k) in enumerate(slots)
    )


def _check(windows: Windows, tiers: Sequence[Tier], devices: int, how: str, alpha: float) -> None:
    if not len(windows) or not devices:
        raise ValueError(f"{len(windows)} windows for {devices} devices: need at least one of each")
    if how == "subject" and devices > len(windows.subjects):
        raise ValueError(f"{devices} devices for {len(windows.subjects)} subjects: 'subject' gives each its own")
    if alpha <= 0:
        raise ValueError(f"alpha {alpha}: expected more than 0; small values skew labels, large ones do not")
    for tier in tiers:
        for name in {name for owned in tier.modalities for name in owned} - set(windows.x):
            raise ValueError(f"tier {tier.name}: no window has modality {name!r}; there are {', '.join(windows.x)}")
        if not tier.modalities or not all(tier.modalities):
            raise ValueError(f"tier {tier.name}: every device needs at least one modality")


def _mixed(rng: np.random.RandomState, tiers: Sequence[Tier], t: int) -> npt.NDArray[np.int64]:
    """The slots of tier t in a drawn order, so that who wears what does not follow the subjects' numbers."""
    first = sum(tier.devices for tier in tiers[:t])
    return np.arange(first, first + tiers[t].devices)[rng.permutation(tiers[t].devices)]


def _shared(
    windows: Windows, subject: str, devices: int, alpha: float | None, rng: np.random.RandomState
) -> list[npt.NDArray[np.int64]]:
    """Each device's rows of one subject: stretches of time of every class, cut evenly or as drawn."""
    own: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(devices)]
    number = windows.subjects.index(subject)
    for rows in groups(windows):
        if not devices or windows.subject[rows[0]] != number:
            continue
        parts = np.full(devices, 1.0 / devices)
        if alpha is not None:
            drawn = rng.standard_gamma(alpha, devices)
            parts = drawn / drawn.sum() if drawn.sum() > 0 else parts
        bounds = np.round(np.concatenate([[0.0], np.cumsum(parts)]) * len(rows)).astype(int)
        bounds[-1] = len(rows)
        for n in range(devices):
            own[n].append(_apart(windows, rows, bounds[n], bounds[n + 1]))
    return [np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64) for parts in own]


def _apart(windows: Windows, rows: npt.NDArray[np.int64], begin: int, end: int) -> npt.NDArray[np.int64]:
    """rows[begin:end] without those that overlap the window before them, which another device holds."""
    mine = rows[begin:end]
    if begin == 0 or not len(mine):
        return mine
    kept: npt.NDArray[np.int64] = mine[windows.position[mine] >= windows.stop[rows[begin - 1]] - 1e-6]
    return kept
