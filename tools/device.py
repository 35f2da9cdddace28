"""`relief device`: one device process."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools import log as logs
from tools.accept import accept

if TYPE_CHECKING:
    from collections.abc import Callable

    from device_runtime.runtime import Runtime

# A device computes on one thread; each further one would cost memory before it did anything. Read when numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COLOURS = ("green", "yellow", "red")

app = typer.Typer(no_args_is_help=True, help="One device of a fleet: senses, trains, reports.")

app.command()(accept)

Config = Annotated[Path, typer.Option("--config", "-c", help="The TOML configuration.", show_default=False)]
Id = Annotated[str | None, typer.Option("--device", "-d", help="Which [[device]]; not needed where there is one.")]


@app.callback()
def device() -> None:
    """One device of a fleet: senses, trains, reports."""


@app.command()
def run(
    config: Config,
    device: Id = None,
    verbose: bool = False,
    metrics: Annotated[str | None, typer.Option(help="Serve Prometheus metrics on HOST:PORT.")] = None,
) -> None:
    """Run a device until it is told to end (SIGTERM, Ctrl-C).

    Example: relief device run --config fleet.toml --device band-1
    """
    from device_runtime.config import settings
    from protocol.errors import ConfigError

    logs.configure(logging.DEBUG if verbose else logging.INFO)
    try:
        known = settings(config, device)
        logs.bind(fleet=known.fleet, device=known.device.id)
        code = _live(known, metrics)
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


def _live(settings: object, metrics: str | None = None) -> int:
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
    end = _prometheus(runtime, metrics) if metrics else None
    try:
        with limit(config.quota) as quota:
            log.info("CPU: %s", quota)
            return runtime.run()
    finally:
        if end:
            end()


def _prometheus(runtime: Runtime, where: str) -> Callable[[], None]:
    from device_runtime import telemetry

    try:
        from device_runtime.metrics import DeviceMetrics
        from tools.metrics.endpoint import address, endpoint
    except ImportError:
        raise ValueError('--metrics needs pip install "relief-edge[metrics]"') from None
    port, end = endpoint(DeviceMetrics(lambda: telemetry.values(runtime)), *address(where))
    logging.getLogger("relief.device").info("metrics: http://%s:%d/metrics", address(where)[0], port)
    return end
