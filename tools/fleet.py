"""`relief fleet`: look at a running fleet, and steer it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from tools.fleet_model import adopt, rollback, versions
from tools.fleet_update import update
from tools.panels import fleet_panel
from tools.shown import Json, print_json
from tools.steering import Fleet, of_a_fleet
from tools.watch import Watch

app = typer.Typer(no_args_is_help=True, help="Look at a running fleet and steer it.")
for verb in (update, versions, adopt, rollback):
    app.command()(verb)

Device = Annotated[str, typer.Argument(help="The device's name, as `relief fleet status` shows it.")]


@app.command()
@of_a_fleet
def status(
    fleet: Fleet,
    follow: Annotated[bool, typer.Option(help="Go on showing until interrupted.")] = False,
    as_json: Json = False,
) -> None:
    """Show the round, the devices, the cohorts and their divergences.

    Example: relief fleet status --config fleet.toml --follow
    """
    console = Console()
    with Watch(fleet.name, fleet.connection("status")) as watch:
        summary = watch.next(fleet.broker.connect_timeout + 2.0)
        if summary is None:
            where = f"{fleet.broker.host}:{fleet.broker.port}"
            typer.echo(f"fleet {fleet.name}: no coordinator has said anything on {where}", err=True)
            raise typer.Exit(1)
        if as_json:
            print_json({**summary, "online": watch.online})
            return
        if watch.online is False:
            console.print(f"The coordinator of {fleet.name} is not running; this is what it said last:")
        console.print(fleet_panel(summary, fleet.name))
        if follow:
            _follow(console, watch, fleet.name, summary)


def _follow(console: Console, watch: Watch, name: str, summary: dict[str, Any]) -> None:
    try:
        with Live(fleet_panel(summary, name), console=console, refresh_per_second=4) as live:
            while True:
                if summary := watch.next(1.0) or summary:
                    live.update(fleet_panel(summary, name))
    except KeyboardInterrupt:
        return


@app.command()
@of_a_fleet
def pause(fleet: Fleet) -> None:
    """Finish the round that is open and begin no other.

    Example: relief fleet pause --config fleet.toml
    """
    fleet.steer("pause", {})


@app.command()
@of_a_fleet
def resume(fleet: Fleet) -> None:
    """Go on after a pause.

    Example: relief fleet resume --config fleet.toml
    """
    fleet.steer("resume", {})


@app.command()
@of_a_fleet
def quarantine(
    fleet: Fleet,
    device: Device,
    reason: Annotated[str, typer.Option(help="Why; the device is told.")] = "by an operator",
) -> None:
    """Leave a device out: it is neither asked nor heard until released.

    Example: relief fleet quarantine band-3 --reason "sensor is loose"
    """
    fleet.steer("quarantine", {"device": device, "reason": reason})


@app.command()
@of_a_fleet
def release(fleet: Fleet, device: Device) -> None:
    """Take a quarantined device in again.

    Example: relief fleet release band-3
    """
    fleet.steer("release", {"device": device})
