"""`relief simulate` and `relief experiment`: runs in virtual time, grids of them, and their reports."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tools.shown import Json, print_json, progress

experiment = typer.Typer(no_args_is_help=True, help="Grids of methods, fleets, folds and seeds; their reports.")


def simulate(
    fleet: Annotated[str, typer.Option(help="A fleet file, or the name of one that comes along.")] = "coupled",
    method: Annotated[str, typer.Option(help="A strategy, as `relief simulate --method help` lists them.")] = "relief",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to simulate.")] = 40,
    mode: Annotated[str, typer.Option(help="full or lora.")] = "full",
    fold: Annotated[int, typer.Option(min=0, help="Which subjects are held out.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the model and of every draw.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.05,
    dropout: Annotated[float, typer.Option(help="Modality dropout in local steps.")] = 0.0,
    deadline: Annotated[
        str, typer.Option(help="cohorts, fastest, learned, none, a quantile below 1, or seconds.")
    ] = "cohorts",
    every: Annotated[int, typer.Option(min=1, help="Rounds between two evaluations.")] = 5,
    as_json: Json = False,
) -> None:
    """One simulated run in virtual time: the coordinator's own core and strategies, devices trained all at once.

    Example: relief simulate --fleet coupled --method relief --rounds 60
    """
    from rich.console import Console
    from rich.table import Table

    from coordinator.strategies import STRATEGIES
    from models.spec import Mode
    from tools.lab.cells import made, prepared, run_of
    from tools.lab.plan import Cell, Experiment, Method
    from tools.lab.simulate import Point

    console = Console()
    if method == "help":
        for name, cls in STRATEGIES.items():
            console.print(f"{name:24} {cls.source:20} absent modalities: {cls.absent}")
        return
    try:
        entry = Method(strategy=method, deadline=deadline, dropout=dropout)
    except ValueError as error:
        raise typer.BadParameter(f"{deadline!r} is none of the deadlines that --help names") from error
    plan = Experiment(name="simulate", fleets=[fleet], modes=[Mode(mode)], reference=method, methods={method: entry})
    cell = Cell(method, fleet, Mode(mode), fold, seed, lr)
    where, engine, blocks, frozen = prepared(plan.model_dump_json(), cell)
    if not as_json:
        told = f"{len(where.devices)} devices, {len(where.train)} training windows; clock and energy are simulated"
        console.print(told, soft_wrap=True)
    points: list[Point] = []
    table = Table("round", "seconds", "joules", "with idle", "MB up", "loss", "in-subject", "held-out", "rare only")

    def show(point: Point) -> bool:
        points.append(point)
        step(point.round)
        s = point.scores
        cells = (point.seconds, point.joules, point.joules_idle, point.bytes_up / 1e6)
        scores = (point.loss, s["in_subject"], s["held_out"], s["rare_only"])
        table.add_row(str(point.round), *(f"{v:.1f}" for v in cells), *(f"{v:.3f}" for v in scores))
        return False

    strategy = made(entry, where, plan, cell)
    with progress(method, rounds, "rounds") as step:
        run_of(strategy)(
            where, strategy, engine, dict(blocks), dict(frozen), rounds=rounds, every=every, watch=show
        ).go()
    if as_json:
        print_json([asdict(point) for point in points])
        return
    console.print(table)


@experiment.command()
def run(
    file: Annotated[str, typer.Argument(help="An experiment file, or the name of one that comes along.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; runs that are there are not repeated.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local (this machine's cores) or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    seeds: Annotated[int, typer.Option(min=0, help="Only so many of the file's seeds; 0: all.")] = 0,
    folds: Annotated[int, typer.Option(min=0, help="Only so many of the file's folds; 0: all.")] = 0,
    fleet: Annotated[str, typer.Option(help="Another fleet than the file's.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Fail unless RELIEF is ahead of every FedAvg.")] = False,
) -> None:
    """Run an experiment's grid, write its table and report, and end with the headline.

    Example: relief experiment run paper --out runs/paper
    """
    from tools.lab.experiment import Lab
    from tools.lab.plan import experiment as read
    from tools.lab.report import ordering
    from tools.lab.report import report as write

    if engine not in ("local", "ray"):
        raise typer.BadParameter(f"{engine!r} is neither local nor ray", param_hint="--engine")
    plan = read(file)
    if seeds:
        plan = plan.model_copy(update={"seeds": plan.seeds[:seeds]})
    if folds:
        tuning = plan.tuning.model_copy(update={"folds": plan.tuning.folds[:folds]})
        plan = plan.model_copy(update={"folds": plan.folds[:folds], "tuning": tuning})
    if fleet:
        plan = plan.model_copy(update={"fleets": [fleet]})
    folder = out or Path("runs") / plan.name
    Lab(plan, folder, workers=workers, engine=engine, say=typer.echo).run()
    typer.echo(f"report: {folder / 'report.md'}, table: {folder / 'points.csv'}")
    typer.echo(write(folder))
    if check and (behind := ordering(folder)):
        typer.echo("the ordering does not hold: " + "; ".join(behind), err=True)
        raise typer.Exit(1)


@experiment.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of an experiment.", exists=True, file_okay=False)],
) -> None:
    """Write the report of what is finished in a folder, and print the headline.

    Example: relief experiment report runs/paper
    """
    from tools.lab.report import report as write

    typer.echo(write(folder))


@experiment.command()
def measure(
    file: Annotated[str, typer.Argument(help="An experiment file, or the name of one that comes along.")] = "measured",
    out: Annotated[Path | None, typer.Option(help="A fresh folder for the results.")] = None,
) -> None:
    """Run an experiment on the wall clock: device processes over Mosquitto under CPU shares; then simulate that fleet.

    Example: relief experiment measure
    """
    from tools.lab.beside import beside
    from tools.lab.plan import experiment as read

    plan = read(file)
    folder = out or Path("runs") / time.strftime(f"{plan.name}-%Y%m%d-%H%M%S")
    with progress("measuring", 100, "%") as step:
        headline = beside(plan, folder, typer.echo, lambda done: step(100 * done))
    typer.echo(f"report: {folder / 'report.md'}, table: {folder / 'points.csv'}")
    typer.echo(headline)
