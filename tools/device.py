"""`relief device`: one device process."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

# A device computes on one thread; each further one would cost memory before it did anything. Read when numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COLOURS = ("green", "yellow", "red")

app = typer.Typer(no_args_is_help=True, help="One device of a fleet: senses, trains, reports.")

Config = Annotated[Path, typer.Option("--config", "-c", help="The TOML configuration.", show_default=False)]
Id = Annotated[str | None, typer.Option("--device", "-d", help="Which [[device]]; not needed where there is one.")]


@app.callback()
def device() -> None:
    """One device of a fleet: senses, trains, reports."""


@app.command()
def run(config: Config, device: Id = None, verbose: bool = False) -> None:
    """Run a device until it is told to end (SIGTERM, Ctrl-C)."""
    from device_runtime.config import settings
    from protocol.errors import ConfigError

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        stream=sys.stderr,
    )
    try:
        code = _live(settings(config, device))
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    logging.shutdown()
    sys.stdout.flush()
    # Everything is closed. The interpreter's own end would take torch apart for a second, maybe under a running step.
    os._exit(code)


@app.command()
def check(config: Config, device: Id = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Look at everything a device needs, one line each; the exit code is the worst: 0 good, 1 to look at, 2 broken."""
    from device_runtime.checks import Level, examine
    from device_runtime.config import settings
    from protocol.errors import ConfigError

    try:
        known = settings(config, device)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    worst = Level.OK
    for result in examine(known):
        worst = max(worst, result.level)
        if as_json:
            plain = {"check": result.check, "level": result.level.name, "told": result.told, "todo": result.todo}
            typer.echo(json.dumps(plain))
        else:
            mark = typer.style(f"{result.level.name:<4}", fg=COLOURS[result.level], bold=True)
            typer.echo(
                f"{mark} {result.check:<12} {result.told}" + (f"\n{'':18}-> {result.todo}" if result.todo else "")
            )
    raise typer.Exit(int(worst))


def _live(settings: object) -> int:
    from device_runtime.config import Settings
    from device_runtime.quota import limit
    from device_runtime.runtime import Runtime
    from device_runtime.senses import senses
    from device_runtime.worker import prepare, torch_is_here
    from protocol.connection import connection

    assert isinstance(settings, Settings)
    log, config = logging.getLogger("relief.device"), settings.device
    trains = config.train and torch_is_here()
    sensing, note = senses(config, settings.broker, trains=trains)
    log.info("device %s: %s", config.id, note)
    if trains:
        prepare()
    runtime = Runtime(settings, connection(settings.broker, config.id), sensing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: runtime.stop(signal.Signals(n).name))
    with limit(config.quota) as quota:
        log.info("CPU: %s", quota)
        return runtime.run()
