"""Runs the grid of an experiment: resumable, in parallel over cores, every method's learning rate tuned alike."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from models.spec import Mode
from tools.lab.cells import run_cell
from tools.lab.plan import Cell, Experiment

Result = dict[str, Any]
Say = Callable[[str], None]


class Lab:
    """An experiment in its folder: `cells/` holds a file per finished run, `rates.json` the tuned learning rates."""

    def __init__(
        self, experiment: Experiment, folder: Path, *, workers: int = 0, engine: str = "local", say: Say = print
    ):
        self.experiment, self.folder, self.say = experiment, folder, say
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
            for method in methods
        ]

    # -- learning rates ----------------------------------------------------------------------------

    def tuned(self) -> dict[str, float]:
        """method/mode -> learning rate: fixed in the file, or the best of the same trials on validation."""
        e, tuning = self.experiment, self.experiment.tuning
        rates = {f"{m}/{mode}": r for m, method in e.methods.items() for mode, r in method.learning_rate.items()}
        open_ = [(m, mode) for m in e.methods for mode in e.modes if f"{m}/{mode.value}" not in rates]
        trials = [
            Cell(m, e.fleets[0], mode, fold, tuning.seed, rate, tuning=True)
            for mode in e.modes
            for fold in tuning.folds
            for m, at in open_
            if at is mode
            for rate in tuning.rates
        ]
        # Every trial of every method ends at the same simulated time: the reference's at its full length.
        clocks = self._trial_clocks([mode for mode in e.modes if any(t.mode is mode for t in trials)])
        timed = [t if t.method == e.reference else replace(t, clock=clocks[t.mode, t.fold]) for t in trials]
        found = self.finish(timed, "tuning")
        for m, mode in open_:
            scores = {rate: _score(found, m, mode, rate) for rate in tuning.rates}
            rates[f"{m}/{mode.value}"] = max(scores, key=lambda rate: scores[rate])
            self.say(f"learning rate of {m} in {mode.value}: {rates[f'{m}/{mode.value}']} of {scores}")
        (self.folder / "rates.json").write_text(json.dumps(rates, indent=1))
        return rates

    def _trial_clocks(self, modes: Iterable[Mode]) -> dict[tuple[Mode, int], float]:
        e = self.experiment
        cells = [
            Cell(e.reference, e.fleets[0], mode, fold, e.tuning.seed, e.tuning.rates[0], tuning=True)
            for mode in modes
            for fold in e.tuning.folds
        ]
        done = self.finish(cells, "reference trials")
        part = min((method.until for method in e.methods.values() if method.until), default=1.0)
        return {(Mode(r["mode"]), r["fold"]): part * r["points"][-1]["seconds"] for r in done}

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
        return self.folder / "cells" / f"{cell.key(self.experiment)}.json"

    def _each(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        if self.engine == "ray":
            from tools.lab.on_ray import run_on_ray

            yield from run_on_ray(self.experiment, cells)
        elif self.workers == 1 or len(cells) < 2:
            for cell in cells:
                yield cell, run_cell(self.experiment, cell)
        else:
            with ProcessPoolExecutor(self.workers, get_context("spawn"), initializer=one_thread) as pool:
                waiting = {pool.submit(run_cell, self.experiment, cell): cell for cell in cells}
                for future in as_completed(waiting):
                    yield waiting[future], future.result()

    def tidy(self, results: Iterable[Result]) -> Path:
        """One row per evaluation of every run, as CSV."""
        path = self.folder / "points.csv"
        with path.open("w") as file:
            for n, (result, point) in enumerate((r, p) for r in results for p in r["points"]):
                about = {k: result[k] for k in ("method", "fleet", "mode", "fold", "seed", "rate")}
                row = {**about, **point}
                if n == 0:
                    file.write(",".join(row) + "\n")
                file.write(",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()) + "\n")
        return path


def one_thread() -> None:
    """A worker leaves the other cores to the other workers."""
    import torch

    torch.set_num_threads(1)


def _score(found: Sequence[Result], method: str, mode: Mode, rate: float) -> float:
    """Mean over trials of in-subject and held-out F1 at their last three evaluations, on validation."""
    runs = [r for r in found if (r["method"], r["mode"], r["rate"]) == (method, mode.value, rate)]
    last = [p[s] for r in runs for p in r["points"][-3:] for s in ("in_subject", "held_out")]
    return float(sum(last) / len(last))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
