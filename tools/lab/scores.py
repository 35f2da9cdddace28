"""What a comparison comes to: time, energy and rounds to a target, final scores, paired run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STAY = 3  # evaluations for which a score must stay at or above its target; also how many make a final score
SCORES = ("in_subject", "held_out", "rare_owners", "rare_only", "rare_drop")

Key = tuple[str, str, int, int]  # fleet, mode, fold, seed
Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A run's evaluations, column by column."""

    method: str
    key: Key
    columns: Mapping[str, Column]

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Curve:
        points = result["points"]
        columns = {name: np.array([p[name] for p in points], float) for name in points[0]}
        return cls(result["method"], (result["fleet"], result["mode"], result["fold"], result["seed"]), columns)

    def final(self, score: str, until: float = np.inf) -> float:
        """Mean of the last three evaluations, at the latest at `until` simulated seconds; NaN where there are none."""
        values = self.columns[score][self.columns["seconds"] <= until * (1 + 1e-9)]
        return float(values[-STAY:].mean()) if len(values) else float("nan")

    def reached(self, score: str, target: float) -> int | None:
        """The first evaluation from which the score stays at or above `target` for three; None if never."""
        above = self.columns[score] >= target
        for n in range(len(above) - STAY + 1):
            if above[n : n + STAY].all():
                return n
        return None

    def per_round(self) -> float:
        """Simulated seconds of a round, over the whole run."""
        return float(self.columns["seconds"][-1] / self.columns["round"][-1])


@dataclass(frozen=True)
class Comparison:
    """One method against a reference over all folds and seeds, each run against the reference's of the same world.

    ratios   name -> per run, how many times less the method needed (NaN where a run never reached the target)
    gains    name -> per run, points of F1 over the reference's final score, at half of the reference's clock
    """

    method: str
    reference: str
    ratios: Mapping[str, Column]
    gains: Mapping[str, Column]
    seeds: npt.NDArray[np.int64]

    def ratio(self, name: str) -> tuple[float, float, float, int, int]:
        """(geometric mean, lowest, highest, runs that reached it, runs) of a ratio."""
        values = self.ratios[name]
        good = values[np.isfinite(values)]
        if not len(good):
            return float("nan"), float("nan"), float("nan"), 0, len(values)
        return float(np.exp(np.log(good).mean())), float(good.min()), float(good.max()), len(good), len(values)

    def gain(self, name: str) -> tuple[float, float]:
        """(mean, standard deviation over seeds) of a gain, in points."""
        by_seed = [np.nanmean(self.gains[name][self.seeds == seed]) for seed in np.unique(self.seeds)]
        return 100 * float(np.mean(by_seed)), 100 * float(np.std(by_seed))


def compare(curves: Sequence[Curve], method: str, reference: str) -> Comparison:
    """The method against the reference, run by run. ValueError where they share no world."""
    mine = {c.key: c for c in curves if c.method == method}
    theirs = {c.key: c for c in curves if c.method == reference}
    keys = sorted(mine.keys() & theirs.keys())
    if not keys:
        raise ValueError(f"{method} and {reference} have no run on the same fleet, mode, fold and seed")
    rows = [_pair(mine[key], theirs[key]) for key in keys]
    ratios = {name: np.array([r[0][name] for r in rows]) for name in rows[0][0]}
    gains = {name: np.array([r[1][name] for r in rows]) for name in rows[0][1]}
    return Comparison(method, reference, ratios, gains, np.array([key[3] for key in keys]))


def _pair(mine: Curve, theirs: Curve) -> tuple[dict[str, float], dict[str, float]]:
    ratios = {"per_round": theirs.per_round() / mine.per_round()}
    for score in ("held_out", "in_subject"):
        target = theirs.final(score)
        a, b = mine.reached(score, target), theirs.reached(score, target)
        # The reference's last three may average above each of them: then it is at its target only at its end.
        b = len(theirs.columns["round"]) - 1 if b is None else b
        for column in ("seconds", "round", "joules", "joules_idle", "bytes_up", "bytes_down"):
            used = theirs.columns[column][b], (float("nan") if a is None else mine.columns[column][a])
            ratios[f"{column}/{score}"] = float(used[0] / used[1])
    half = theirs.columns["seconds"][-1] / 2
    gains = {s: mine.final(s, half) - theirs.final(s) for s in SCORES}
    gains |= {f"{s}/end": mine.final(s) - theirs.final(s) for s in SCORES}
    return ratios, gains


def finals(curves: Sequence[Curve], method: str, score: str) -> tuple[float, float]:
    """(mean, standard deviation over seeds) of the method's final score, in points."""
    mine = [c for c in curves if c.method == method]
    seeds = sorted({c.key[3] for c in mine})
    means = [np.mean([c.final(score) for c in mine if c.key[3] == seed]) for seed in seeds]
    return 100 * float(np.mean(means)), 100 * float(np.std(means))


@dataclass(frozen=True)
class RegretCurve:
    """A run's regret round by round: `chosen` and `best` value of its allocations (tools.lab.regret)."""

    method: str
    key: Key
    chosen: Column
    best: Column

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> RegretCurve:
        chosen, best = (np.array([entry[name] for entry in result["regret"]], float) for name in ("chosen", "best"))
        return cls(result["method"], (result["fleet"], result["mode"], result["fold"], result["seed"]), chosen, best)

    def cumulative(self) -> Column:
        """Sum of best minus chosen up to every round."""
        return np.cumsum(self.best - self.chosen)

    def part(self, begin: int = 0, end: int | None = None) -> float:
        """What was lost of the best value in rounds [begin, end), between 0 and 1."""
        best = self.best[begin:end].sum()
        return float((best - self.chosen[begin:end].sum()) / best) if best > 0 else 0.0
