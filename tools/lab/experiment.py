"""Runs the grid of an experiment: resumable, in parallel over cores, every method's learning rate tuned alike."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from models.spec import Mode
from tools.lab.cells import run_cell
from tools.lab.fleet import fleet
from tools.lab.plan import Cell, Experiment, Tuning

Result = dict[str, Any]
Say = Callable[[str], None]


class Lab:
    """An experiment in its folder: `cells/` holds a file per finished run, `rates.json` the tuned learning rates."""

    def __init__(
        self, experiment: Experiment, folder: Path, *, workers: int = 0, engine: str = "local", say: Say = print
    ):
        self.experiment, self.folder, self.say = experiment, folder, say
        self.fleets = {name: fleet(name) for name in experiment.fleets}
        self.workers = workers or os.cpu_count() or 1
        self.engine = engine
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        (folder / "experiment.json").write_text(experiment.model_dump_json(indent=1))

    def run(self) -> list[Result]:
        """Tune what is not fixed, then the reference, then everything else up to its share of the reference's clock."""
        rates = self.tuned()
        reference = self.cells(rates, [self.experiment.reference])
        done = self.finish(reference, "reference")
        clocks = {(r["fleet"], r["mode"], r["fold"], r["seed"]): r["points"][-1]["seconds"] for r in done}
        rest = []
        for cell in self.cells(rates, [m for m in self.experiment.methods if m != self.experiment.reference]):
            part = self.experiment.methods[cell.method].until
            rest.append(replace(cell, clock=part * clocks[cell.fleet, cell.mode.value, cell.fold, cell.seed]))
        done += self.finish(rest, "methods")
        names = [self._file(cell).name for cell in (*reference, *rest)]
        (self.folder / "results.json").write_text(json.dumps(names, indent=1))
        self.tidy(done)
        return done

    def cells(self, rates: dict[str, float], methods: Sequence[str]) -> list[Cell]:
        """The grid, cells of one world next to each other."""
        e = self.experiment
        return [
            Cell(method, fleet, mode, fold, seed, rates[f"{method}/{mode.value}"])
            for fleet in e.fleets
            for mode in e.modes
            for seed in e.seeds  # seeds outside folds: an unfinished grid still covers all folds
            for fold in e.folds
            for method in e.methods_in(mode)
            if method in methods
        ]

    # -- learning rates ----------------------------------------------------------------------------

    def tuned(self) -> dict[str, float]:
        """method/mode -> learning rate: fixed in the file, or the best of the same trials on validation.

        Every method tries the same rates on the same folds by the same seed, each trial as long as its reported runs.
        """
        e, tuning = self.experiment, self.experiment.tuning
        rates = {f"{m}/{mode}": r for m, method in e.methods.items() for mode, r in method.learning_rate.items()}
        open_ = [(m, mode) for mode in e.modes for m in e.methods_in(mode) if f"{m}/{mode.value}" not in rates]
        trials = [
            Cell(m, e.fleets[0], mode, fold, tuning.seed, rate, tuning=True)
            for mode in e.modes
            for fold in tuning.folds
            for m, at in open_
            if at is mode
            for rate in tuning.rates
        ]
        if trials:
            self.say(f"tuning {len(open_)} learning rates takes {len(trials)} runs: {_product(tuning, len(open_))}")
        clocks = self._trial_clocks([mode for mode in e.modes if any(t.mode is mode for t in trials)])
        timed = [
            t if t.method == e.reference else replace(t, clock=e.methods[t.method].until * clocks[t.mode, t.fold])
            for t in trials
        ]
        found = self.finish(timed, "tuning")
        record: dict[str, Any] = {
            "runs": len(trials),
            "cpu_seconds": sum(r.get("cpu", r["wall"]) for r in found),
            "scores": {},
        }
        for m, mode in open_:
            scores = {rate: _score(found, m, mode, rate) for rate in tuning.rates}
            rates[f"{m}/{mode.value}"] = max(scores, key=lambda rate: scores[rate])
            record["scores"][f"{m}/{mode.value}"] = {str(rate): score for rate, score in scores.items()}
            tried = ", ".join(f"{rate:g}: {score:.3f}" for rate, score in scores.items())
            self.say(f"learning rate of {m} in {mode.value}: {rates[f'{m}/{mode.value}']:g} of {tried}")
        (self.folder / "tuning.json").write_text(json.dumps(record, indent=1))
        (self.folder / "rates.json").write_text(json.dumps(rates, indent=1))
        return rates

    def _trial_clocks(self, modes: Iterable[Mode]) -> dict[tuple[Mode, int], float]:
        """How long the reference's trials last in simulated seconds, whatever its learning rate."""
        e = self.experiment
        rate = e.methods[e.reference].learning_rate
        cells = [
            Cell(e.reference, e.fleets[0], mode, fold, e.tuning.seed, rate.get(mode.value, e.tuning.rates[0]), True)
            for mode in modes
            for fold in e.tuning.folds
        ]
        done = self.finish(cells, "reference trials")
        return {(Mode(r["mode"]), r["fold"]): r["points"][-1]["seconds"] for r in done}

    # -- running -----------------------------------------------------------------------------------

    def finish(self, cells: Sequence[Cell], what: str) -> list[Result]:
        """Results of these cells, those that are on disk read, the others run now. Progress says the time left."""
        missing = [cell for cell in cells if not self._file(cell).is_file()]
        if missing:
            self.say(f"{what}: {len(missing)} runs to do, {len(cells) - len(missing)} are there")
        began = time.monotonic()
        for n, (cell, result) in enumerate(self._each(missing), 1):
            beside = self._file(cell).with_suffix(".part")
            beside.write_text(json.dumps(result))
            beside.replace(self._file(cell))
            left = (time.monotonic() - began) / n * (len(missing) - n)
            self.say(
                f"{what} {n}/{len(missing)}  {cell.method} {cell.fleet} {cell.mode.value} fold {cell.fold} "
                f"seed {cell.seed}  {result['wall']:.0f} s, about {_minutes(left)} left"
            )
        return [json.loads(self._file(cell).read_text()) for cell in cells]

    def _file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.key(self.experiment, self.fleets[cell.fleet])}.json"

    def _each(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """Results as they come. A cell that fails leaves the others to be finished first, then its error is raised."""
        if self.engine == "ray":
            from tools.lab.on_ray import run_on_ray

            yield from run_on_ray(self.experiment, cells)
            return
        if self.workers == 1:
            with _one_thread():
                for cell in cells:
                    yield cell, run_cell(self.experiment, cell)
            return
        if not cells:
            return
        failed: list[tuple[Cell, BaseException]] = []
        with _one_thread_each(), ProcessPoolExecutor(min(self.workers, len(cells)), get_context("spawn")) as pool:
            waiting = {pool.submit(run_cell, self.experiment, cell): cell for cell in cells}
            try:
                for future in as_completed(waiting):
                    error = future.exception()
                    if error is None:
                        yield waiting[future], future.result()
                    else:
                        failed.append((waiting[future], error))
            finally:  # interrupted: what is not begun never begins, what is finished is on disk
                pool.shutdown(wait=False, cancel_futures=True)
        if failed:
            first, error = failed[0]
            self.say(
                f"{len(failed)} of {len(cells)} runs failed, first {first.method} on {first.fleet} in "
                f"{first.mode.value}, fold {first.fold}, seed {first.seed}"
            )
            raise error

    def tidy(self, results: Sequence[Result]) -> Path:
        """One row per evaluation of every run as points.csv, and one per round with its regret as regret.csv."""
        path = self.folder / "points.csv"
        table(path, results, "points")
        if any(r.get("regret") for r in results):
            table(self.folder / "regret.csv", results, "regret")
        return path


def table(path: Path, results: Iterable[Result], what: str) -> None:
    """The entries under `what` of all results as one tidy CSV: whose they are, by which clock, their values."""
    with path.open("w") as file:
        for n, (result, entry) in enumerate((r, entry) for r in results for entry in r.get(what, ())):
            about = {k: result[k] for k in ("method", "fleet", "mode", "fold", "seed", "rate")}
            row = {**about, "clock": result.get("clock", "simulated"), **entry}
            if n == 0:
                file.write(",".join(row) + "\n")
            file.write(",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()) + "\n")


@contextmanager
def _one_thread() -> Iterator[None]:
    """This process computes on one thread meanwhile, as those of a pool do."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start meanwhile compute on one thread: the other cores belong to the other processes."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _product(tuning: Tuning, open_: int) -> str:
    return f"{open_} x {len(tuning.rates)} rates x {len(tuning.folds)} folds, test windows unseen"


def _score(found: Sequence[Result], method: str, mode: Mode, rate: float) -> float:
    """Mean over trials of in-subject and held-out F1 at their last three evaluations, on validation."""
    runs = [r for r in found if (r["method"], r["mode"], r["rate"]) == (method, mode.value, rate)]
    last = [p[s] for r in runs for p in r["points"][-3:] for s in ("in_subject", "held_out")]
    return float(sum(last) / len(last))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
