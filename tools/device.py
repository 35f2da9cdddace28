"""`relief device`: one device process."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tools.accept import accept
from tools.shown import Json, print_json

COLOURS = ("green", "yellow", "red")

app = typer.Typer(no_args_is_help=True, help="One device of a fleet: senses, trains, reports.")

app.command()(accept)

Config = Annotated[Path, typer.Option("--config", "-c", help="The TOML configuration.", show_default=False)]
Id = Annotated[str | None, typer.Option("--device", "-d", help=r"Which [\[device]]; not needed where there is one.")]


@app.callback()
def device() -> None:
    """One device of a fleet: senses, trains, reports."""


@app.command()
def run(
    config: Config,
    device: Id = None,
    verbose: Annotated[bool, typer.Option(help="Say more in the log.")] = False,
    metrics: Annotated[str | None, typer.Option(help="Serve Prometheus metrics on HOST:PORT.")] = None,
) -> None:
    """Run a device until it is told to end (SIGTERM, Ctrl-C).

    Example: relief device run --config fleet.toml --device band-1
    """
    from tools.device_process import become

    become(config, device, verbose=verbose, metrics=metrics)


@app.command()
def check(config: Config, device: Id = None, as_json: Json = False) -> None:
    """Look at everything a device needs, one line each; the exit code is the worst: 0 good, 1 to look at, 2 broken.

    Example: relief device check --config fleet.toml --device band-1
    """
    from device_runtime.checks import Level, examine
    from device_runtime.config import settings

    known, worst, table = settings(config, device), Level.OK, []
    for result in examine(known):
        worst = max(worst, result.level)
        if as_json:
            table.append({**asdict(result), "level": result.level.name})
        else:
            mark = typer.style(f"{result.level.name:<4}", fg=COLOURS[result.level], bold=True)
            typer.echo(
                f"{mark} {result.check:<12} {result.told}" + (f"\n{'':18}-> {result.todo}" if result.todo else "")
            )
    if as_json:
        print_json(table)
    raise typer.Exit(int(worst))
