"""Measured beside simulated: the same experiment on the wall clock and in virtual time, ratio by ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.lab.experiment import Lab, table
from tools.lab.measure import Measured, Result, Say, Step, keep, measure
from tools.lab.plan import Experiment
from tools.lab.scores import STAY, Comparison, Curve, compare

RATIOS = (
    ("per_round", "seconds a round"),
    ("seconds/held_out", "time to its final held-out F1"),
    ("seconds/in_subject", "time to its final in-subject F1"),
    ("joules_idle/held_out", "energy with idle, held-out"),
    ("bytes_up/held_out", "bytes up, held-out"),
)
ENOUGH = 0.9  # of its share of a core: with less, the machine and not the tier was the limit
AIM = 0.25  # by how much a measured ratio may differ from the simulated one


def beside(experiment: Experiment, folder: Path, say: Say = print, step: Step = lambda done: None) -> str:
    """Measure the experiment, simulate the fleet that was measured, write table and report; returns the headline.

    `folder` gets points.csv (both, told apart by `clock`), report.md, the calibrated fleet file, and the runs.
    """
    real = measure(experiment, folder, say, step)
    keep(real.results, folder / "wall")
    twin = experiment.model_copy(update={"fleets": [str(real.fleet)], "folds": experiment.folds[:1]})
    twin = twin.model_copy(update={"seeds": experiment.seeds[:1]})
    simulated = Lab(twin, folder / "simulated", say=say).run()
    table(folder / "points.csv", [*real.results, *simulated], "points")
    lines, headline = written(experiment, real, simulated)
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    return headline


def written(e: Experiment, real: Measured, simulated: Sequence[Result]) -> tuple[list[str], str]:
    """The report's lines and the headline, which says so where the machine was too busy for its figures to count."""
    wall, virtual = ([Curve.of(r) for r in results] for results in (real.results, simulated))
    lines = [f"# Experiment {e.name}: wall clock and simulated clock", ""]
    lines += list(_runs(e, real.results, simulated))
    headline = ""
    for method in [m for m in e.methods if m != e.reference]:
        both = compare(wall, method, e.reference), compare(virtual, method, e.reference)
        lines += ["", *_ratios(_title(e, method), _title(e, e.reference), *both)]
        if method == "relief" or not headline:
            headline = _headline(_title(e, method), _title(e, e.reference), *both)
    lines += ["", "Shares of a CPU core while training: " + "; ".join(_shares(real)) + "."] if real.shares else []
    if starved := [tier for tier, (wanted, had) in real.shares.items() if had < ENOUGH * wanted]:
        headline += f"; the machine was busy: {', '.join(starved)} had less than the share of a core that was theirs"
    lines += ["", "The fleet as its processes said it is, which the simulated clock ran on:", "", "```toml"]
    return [*lines, *real.fleet.read_text().strip().splitlines(), "```"], headline


def _shares(real: Measured) -> Iterator[str]:
    for tier, (wanted, had) in real.shares.items():
        yield f"{tier} {had:.2f} of {wanted:g}"


def _runs(e: Experiment, measured: Sequence[Result], simulated: Sequence[Result]) -> Iterator[str]:
    yield "| method | clock | rounds | seconds | held-out | in-subject | rare (ii) |"
    yield "|---|---|---|---|---|---|---|"
    for method in e.methods:
        for name, results in (("wall clock", measured), ("simulated", simulated)):
            run = Curve.of(next(r for r in results if r["method"] == method))
            scores = (f"{100 * run.final(s):.1f}" for s in ("held_out", "in_subject", "rare_only"))
            last = (f"{run.columns['round'][-1]:.0f}", f"{run.columns['seconds'][-1]:.1f}")
            yield "| " + " | ".join((_title(e, method), name, *last, *scores)) + " |"
    yield ""
    yield f"Scores are final macro-F1 in points, the mean of the last {STAY} evaluations; one run each."


def _ratios(mine: str, theirs: str, wall: Comparison, virtual: Comparison) -> Iterator[str]:
    yield f"| {mine} against {theirs} | wall clock | simulated | measured over simulated |"
    yield "|---|---|---|---|"
    for name, about in RATIOS:
        a, b = wall.ratio(name)[0], virtual.ratio(name)[0]
        yield f"| {about} | {_times(a)} | {_times(b)} | {_off(a, b)} |"


def _headline(mine: str, theirs: str, wall: Comparison, virtual: Comparison) -> str:
    a, b = (c.ratio("seconds/held_out")[0] for c in (wall, virtual))
    c, d = (one.ratio("per_round")[0] for one in (wall, virtual))
    return (
        f"{mine} against {theirs}: a round {_times(c)} on the wall clock, {_times(d)} simulated ({_off(c, d)}); time "
        f"to the latter's held-out F1 {_times(a)} on the wall clock, {_times(b)} simulated ({_off(a, b)}; aim: within "
        f"{100 * AIM:.0f} %)"
    )


def _title(e: Experiment, method: str) -> str:
    return e.methods[method].title or method


def _times(ratio: float) -> str:
    return "never" if ratio != ratio else f"{ratio:.2f}x"


def _off(measured: float, simulated: float) -> str:
    off: Any = measured / simulated - 1
    return "" if off != off else f"{100 * off:+.0f} %"
