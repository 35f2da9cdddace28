"""A fleet with its data: who holds which windows, and the windows that judge the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from coordinator.evaluation import Evaluator, Labelled, Owner
from models.spec import InputSpec, ModelSpec
from sensors.dsads import FOLDS
from sensors.locate import find
from sensors.recording import DataError
from sensors.scaling import Scaling, merge, sums
from sensors.splits import groups, split
from sensors.windows import Windows, cut
from tools.lab.fleet import Fleet, Tier


class NoData(DataError):
    """A data set whose recordings are not at hand; the text says where they are looked for."""


@dataclass(frozen=True)
class LabDevice:
    """A simulated device: `windows` are rows of the world's training windows, `flops` and `rate` (bytes) per second."""

    id: str
    tier: str
    owned: tuple[str, ...]
    subject: str
    windows: npt.NDArray[np.int64]
    flops: float
    rate: float
    down: float
    latency: float
    watts: float
    idle_watts: float


@dataclass(frozen=True)
class World:
    """Everything an experiment needs besides a method.

    train        all windows that any device trains on, scaled by them alone
    public       windows that the base model of lora may be pre-trained on, scaled alike; held by no device
    judges       name -> evaluator: "validation" to choose by, "test" to report
    held_out     subjects that nobody trains on
    """

    fleet: Fleet
    spec: ModelSpec
    devices: tuple[LabDevice, ...]
    train: Windows
    public: Windows
    judges: dict[str, Evaluator] = field(repr=False)
    held_out: tuple[str, ...] = ()


def world(
    fleet: Fleet, fold: int, seed: int, *, model: ModelSpec | None = None, public: int = 0, tuning: bool = False
) -> World:
    """The fleet on one fold, its devices' shares drawn by `seed`.

    model     sizes of the model; its inputs and classes are the data set's
    public    number of training subjects kept from the fleet, whose windows pre-train the base of lora
    tuning    for choosing settings: the fold's held-out subjects are not touched at all, one training subject takes
              their place and validation windows that of test windows
    """
    whole, classes, folds = _windows(fleet.dataset)
    known = tuple(whole.x)
    sensed = {m for tier in fleet.tier for k in range(tier.devices) for m in tier.owned(k, known)}
    whole = whole.only([m for m in known if m in sensed])  # what nobody owns is no part of the model
    if not folds or len(whole.subjects) < 3:
        raise NoData(fleet.dataset, f"{len(whole.subjects)} subject at hand; an experiment needs three or more")
    if fold >= len(folds):
        raise ValueError(
            f"{fleet.dataset}: no fold {fold}; its {len(whole.subjects)} subjects make {len(folds)}, counted from 0, "
            f"with two held out in each (`relief experiment run --folds {len(folds)}`)"
        )
    held_out = list(folds[fold])
    seen = [s for s in whole.subjects if s not in held_out]
    if tuning:
        held_out = [seen.pop()]
    kept_back = seen[:public]
    parts = split(whole.of([*seen, *held_out]), held_out)
    mine = parts.train.of(seen[public:])
    rows = _shares(fleet, mine, seen[public:], np.random.default_rng([seed, fold]))
    devices = tuple(_device(fleet, tier, k, known, subject, chosen) for (tier, k), subject, chosen in rows)
    scaling = Scaling.of(merge(sums(mine.take(d.windows).only(d.owned)) for d in devices))
    spec = _spec(model, mine, classes, seed)
    owners = [Owner(d.owned, (d.subject,)) for d in devices]

    def judge(inside: Windows, outside: Windows) -> Evaluator:
        return Evaluator(spec, _labelled(scaling.apply(inside)), _labelled(scaling.apply(outside)), owners)

    inside = parts.validation.of(seen[public:])
    judges = {"validation": judge(inside, inside)}
    judges["test"] = judge(inside if tuning else parts.test.of(seen[public:]), parts.held_out)
    public_windows = scaling.apply(parts.train.of(kept_back))
    return World(fleet, spec, devices, scaling.apply(mine), public_windows, judges, tuple(held_out))


def _spec(model: ModelSpec | None, windows: Windows, classes: int, seed: int) -> ModelSpec:
    inputs = tuple(InputSpec(name, x.shape[1], x.shape[2]) for name, x in windows.x.items())
    if model is None:
        return ModelSpec(inputs, classes, seed=seed)
    sizes = {k: v for k, v in model.to_dict().items() if k not in ("inputs", "classes", "seed")}
    return ModelSpec.from_dict({**sizes, "inputs": [i.__dict__ for i in inputs], "classes": classes, "seed": seed})


def _labelled(windows: Windows) -> Labelled:
    return Labelled(windows.x, windows.y, np.array(windows.subjects)[windows.subject])


def _device(
    fleet: Fleet, tier: Tier, k: int, known: tuple[str, ...], subject: str, rows: npt.NDArray[np.int64]
) -> LabDevice:
    return LabDevice(
        id=f"{tier.name}-{k:04d}",
        tier=tier.name,
        owned=tier.owned(k, known),
        subject=subject,
        windows=rows,
        flops=tier.speed * fleet.gflops * 1e9,
        rate=tier.rate,
        down=tier.rate if tier.down is None else tier.down,
        latency=tier.latency,
        watts=tier.watts,
        idle_watts=tier.idle_watts,
    )


def _shares(
    fleet: Fleet, windows: Windows, subjects: Sequence[str], rng: np.random.Generator
) -> list[tuple[tuple[Tier, int], str, npt.NDArray[np.int64]]]:
    """Each device's subject and windows: its contiguous share, by weight, of every class of that subject.

    Tiers are spread over the subjects; which device of a tier wears what, and which stretch of time, is drawn.
    """
    wearing: dict[str, list[tuple[Tier, int]]] = {s: [] for s in subjects}
    turn = 0
    for tier in fleet.tier:
        for k in rng.permutation(tier.devices):
            wearing[subjects[turn % len(subjects)]].append((tier, int(k)))
            turn += 1
    found = []
    for subject, crew in wearing.items():
        order = [crew[n] for n in rng.permutation(len(crew))]
        weights = np.cumsum([0.0, *(tier.share for tier, _ in order)])
        own: list[list[npt.NDArray[np.int64]]] = [[] for _ in order]
        number = windows.subjects.index(subject)
        for rows in groups(windows):
            if windows.subject[rows[0]] == number:
                bounds = np.round(weights / weights[-1] * len(rows)).astype(int) if len(order) else []
                for n in range(len(order)):
                    own[n].append(rows[bounds[n] : bounds[n + 1]])
        found += [(who, subject, np.sort(np.concatenate(parts))) for who, parts in zip(order, own, strict=True)]
    tiers = [tier.name for tier in fleet.tier]
    found.sort(key=lambda entry: (tiers.index(entry[0][0].name), entry[0][1]))
    empty = [f"{tier.name}-{k}" for (tier, k), _, rows in found if not len(rows)]
    if empty:
        raise ValueError(f"fleet {fleet.name}: too few windows for {fleet.devices} devices; {empty[0]} would have none")
    return found


@lru_cache(maxsize=2)
def _windows(name: str) -> tuple[Windows, int, tuple[tuple[str, ...], ...]]:
    """All windows of a data set, its number of classes, and the held-out subjects of every fold."""
    found = find(name)
    if found.missing:
        raise NoData(name, found.missing)
    data = found.dataset
    windows = cut((r for s in data.subjects() for r in data.recordings(s)), data)
    subjects = list(data.subjects())
    pairs = tuple(tuple(subjects[n : n + 2]) for n in range(0, len(subjects) - 1, 2))
    return windows, len(data.activities), FOLDS if name in ("dsads", "dsads15") else pairs
