"""The report of an experiment: tables in Markdown, curves as pictures, the headline on the last line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.lab.plan import Experiment
from tools.lab.scores import Comparison, Curve, RegretCurve, compare, finals

SIMULATED = (
    "Clock and energy are **simulated**: FLOPs / speed + bytes / bandwidth, joules from the fleet file's watts "
    "(active: above idle while computing; with idle: the whole fleet for as long as the round lasts)."
)


def report(folder: Path, *, pictures: bool = True) -> str:
    """Write report.md and the pictures of an experiment's folder; returns the headline.

    ValueError where the folder holds no finished runs.
    """
    experiment = Experiment.model_validate_json((folder / "experiment.json").read_text())
    curves = load(folder)
    if not curves:
        raise ValueError(f"{folder} holds no finished run; `relief experiment run` makes them")
    lines = [f"# Experiment {experiment.name}", "", SIMULATED, ""]
    heads = []
    for fleet, mode in sorted({c.key[:2] for c in curves}):
        here = [c for c in curves if c.key[:2] == (fleet, mode)]
        named = Path(fleet).stem  # of a fleet file its name alone
        lines += list(_section(experiment, here, named, mode, folder))
        if pictures:
            lines += ["", f"![curves](curves-{named}-{mode}.png)", ""]
            _pictures(experiment, here, folder / f"curves-{named}-{mode}", f"{named} fleet, {mode}")
        regrets = [r for r in load_regret(folder) if r.key[:2] == (fleet, mode)]
        if regrets:
            lines += list(_regret(experiment, regrets))
            if pictures:
                lines += ["", f"![regret](regret-{named}-{mode}.png)", ""]
                _regret_picture(experiment, regrets, folder / f"regret-{named}-{mode}", f"{named} fleet, {mode}")
        heads += _headline(experiment, here, named, mode)
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    return "; ".join(heads) or "no relief run to compare"


def ordering(folder: Path) -> list[str]:
    """Where RELIEF needs more time than a form of FedAvg to get to the latter's final held-out F1; empty if nowhere."""
    curves, behind = load(folder), []
    for method in sorted({c.method for c in curves if c.method.startswith("fedavg")}):
        ratio = compare(curves, "relief", method).ratio("seconds/held_out")
        mean, _, _, reached, runs = ratio
        if reached < runs or mean <= 1.0:
            behind.append(f"{method}: {_how_much(ratio)}")
    return behind


def load(folder: Path) -> list[Curve]:
    """The runs that the experiment's latest complete grid is made of, from results.json, without tuning runs."""
    return [Curve.of(result) for result in _results(folder)]


def load_regret(folder: Path) -> list[RegretCurve]:
    """Regret of the same runs, where it was kept."""
    return [RegretCurve.of(result) for result in _results(folder) if result.get("regret")]


def _results(folder: Path) -> list[dict[str, Any]]:
    index = folder / "results.json"
    names = (
        json.loads(index.read_text()) if index.is_file() else sorted(p.name for p in (folder / "cells").glob("*.json"))
    )
    found = [json.loads((folder / "cells" / name).read_text()) for name in names]
    return [result for result in found if not result["tuning"] and result["points"]]


def _section(e: Experiment, curves: Sequence[Curve], fleet: str, mode: str, folder: Path) -> Iterator[str]:
    seeds, folds = sorted({c.key[3] for c in curves}), sorted({c.key[2] for c in curves})
    rates = json.loads((folder / "rates.json").read_text()) if (folder / "rates.json").is_file() else {}
    methods = [m for m in e.methods if any(c.method == m for c in curves)]
    yield f"## {fleet} fleet, {mode}"
    yield ""
    yield f"Folds {folds}, seeds {seeds}; target: the final score (last three evaluations) of {_title(e, e.reference)}."
    yield from _tuned(e, folder, mode)
    yield ""
    yield (
        "| method | lr | per round | rounds, held-out | time, held-out | time, in-subject | joules, held-out "
        "| with idle | bytes up | reached |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for m in methods:
        c = compare(curves, m, e.reference)
        yield _row(
            _title(e, m),
            str(rates.get(f"{m}/{mode}", "")),
            *(
                _times(c, name)
                for name in (
                    "per_round",
                    "round/held_out",
                    "seconds/held_out",
                    "seconds/in_subject",
                    "joules/held_out",
                    "joules_idle/held_out",
                    "bytes_up/held_out",
                )
            ),
            f"{c.ratio('seconds/held_out')[3]} and {c.ratio('seconds/in_subject')[3]} of {c.ratio('per_round')[4]}",
        )
    yield ""
    yield "x: times less than the reference, geometric mean (lowest to highest) over the runs that reached the target;"
    yield "reached: runs that got to the held-out and to the in-subject target."
    yield ""
    yield _row(
        "method",
        *("in-subject", "held-out", "rare (i) owners", "rare (ii) only", "rare (iii) drop"),
        *("in-subject at half the clock", "held-out at half the clock"),
    )
    yield "|---|---|---|---|---|---|---|---|"
    for m in methods:
        c = compare(curves, m, e.reference)
        scores = [
            _points(*finals(curves, m, s)) for s in ("in_subject", "held_out", "rare_owners", "rare_only", "rare_drop")
        ]
        yield _row(_title(e, m), *scores, _gain(c, "in_subject"), _gain(c, "held_out"))
    yield ""
    yield "Final macro-F1 in points, mean over folds and seeds (standard deviation over seeds). The last two columns"
    yield "are points over the reference's final score, at half of the reference's clock."
    masked = [m for m in methods if m.startswith("fedavg-masked")]
    for other in masked if "relief" in methods else []:
        c = compare(curves, "relief", other)
        yield ""
        yield f"RELIEF against {_title(e, other)}, to the latter's own final score: in time, held-out "
        yield f"{_times(c, 'seconds/held_out')}, in-subject {_times(c, 'seconds/in_subject')}; in energy with idle,"
        yield f"held-out {_times(c, 'joules_idle/held_out')}."


def _regret(e: Experiment, curves: Sequence[RegretCurve]) -> Iterator[str]:
    """Regret against the oracle, method by method."""
    yield ""
    yield "Regret against the oracle: how much of the best allocation's value, sum of U log(1 + s) with every cohort's"
    yield "true divergence of that round, was not had under the same budgets (simulated). The oracle's own is the"
    yield "price of its floors."
    yield ""
    yield "| method | regret, all rounds | first 20 | from 21 on | cumulative |"
    yield "|---|---|---|---|---|"
    for m in [m for m in e.methods if any(c.method == m for c in curves)]:
        mine = [c for c in curves if c.method == m]
        parts = [100 * float(np.mean([c.part(*span) for c in mine])) for span in ((0, None), (0, 20), (20, None))]
        total = float(np.mean([c.cumulative()[-1] for c in mine]))
        rounds = round(float(np.mean([len(c.best) for c in mine])))
        yield _row(_title(e, m), *(f"{part:.1f} %" for part in parts), f"{total:.1f} in {rounds} rounds")


def _tuned(e: Experiment, folder: Path, mode: str) -> Iterator[str]:
    """How the learning rates that the file leaves open were found, and at what cost."""
    path = folder / "tuning.json"
    record = json.loads(path.read_text()) if path.is_file() else {"scores": {}}
    open_ = [m for m in e.methods if f"{m}/{mode}" in record["scores"]]
    if open_:
        t = e.tuning
        yield (
            f"Learning rates of {len(open_)} methods were chosen among {t.rates} on validation (folds {t.folds}, seed "
            f"{t.seed}), each trial as long as the method's runs here: {len(open_) * len(t.rates) * len(t.folds)} "
            f"runs, {record['cpu_seconds'] / 3600:.1f} CPU hours for all modes together."
        )


def _headline(e: Experiment, curves: Sequence[Curve], fleet: str, mode: str) -> list[str]:
    if not any(c.method == "relief" for c in curves):
        return []
    c = compare(curves, "relief", e.reference)
    time, inside, joules = (c.ratio(n) for n in ("seconds/held_out", "seconds/in_subject", "joules_idle/held_out"))
    rare = c.gain("rare_only/end")[0]
    saved = f", energy with idle {100 * (1 - 1 / joules[0]):.0f} % less" if joules[3] else ""
    return [
        f"{fleet}/{mode}: time to {_title(e, e.reference)}'s held-out F1 {_how_much(time)}, "
        f"in-subject {_how_much(inside)}{saved}, rare-modality F1 {rare:+.1f} points (simulated)"
    ]


def _how_much(ratio: tuple[float, float, float, int, int]) -> str:
    mean, _, _, reached, runs = ratio
    return (f"{mean:.1f}x" if reached else "never") + f" ({reached}/{runs} runs)"


def _pictures(e: Experiment, curves: Sequence[Curve], path: Path, heading: str) -> None:
    from tools.lab.figures import draw

    draw(curves, {m: _title(e, m) for m in e.methods}, path, heading)


def _regret_picture(e: Experiment, curves: Sequence[RegretCurve], path: Path, heading: str) -> None:
    from tools.lab.figures import draw_regret

    draw_regret(curves, {m: _title(e, m) for m in e.methods}, path, heading)


def _title(e: Experiment, method: str) -> str:
    return e.methods[method].title or method


def _times(c: Comparison, name: str) -> str:
    mean, low, high, reached, _ = c.ratio(name)
    return f"{mean:.2f}x ({low:.1f} to {high:.1f})" if reached else "never"


def _gain(c: Comparison, name: str) -> str:
    mean, spread = c.gain(name)
    return "" if np.isnan(mean) else f"{mean:+.1f} ({spread:.1f})"


def _points(mean: float, spread: float) -> str:
    return f"{mean:.1f} ({spread:.1f})"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
