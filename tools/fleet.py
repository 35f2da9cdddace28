"""`relief fleet`: look at a running fleet, and steer it."""

from __future__ import annotations

import json
import queue
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from protocol.config import BrokerConfig
from protocol.connection import connection
from protocol.messages import Reply, Request, decode
from protocol.topics import Topics, check_name
from protocol.transport import Connected, Event, Received, Stopped
from tools.configuration import read
from tools.fleet_update import update
from tools.panels import fleet_panel
from tools.watch import Watch

app = typer.Typer(no_args_is_help=True, help="Look at a running fleet and steer it.")
app.command()(update)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file with fleet and broker.")]
Host = Annotated[str, typer.Option(help="Broker's host, without a configuration file.")]
Port = Annotated[int, typer.Option(help="Broker's port, without a configuration file.")]
Name = Annotated[str, typer.Option("--fleet", help="Fleet's name, without a configuration file.")]
Operator = Annotated[str, typer.Option(help="Name of this operator; one identity per tool.")]


def _where(config: Path | None, host: str, port: int, fleet: str) -> tuple[str, BrokerConfig]:
    if config is None:
        return check_name(fleet, "fleet"), BrokerConfig(host=host, port=port)
    file = read(config)
    return file.fleet, file.broker


@app.command()
def status(
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 1883,
    fleet: Name = "relief",
    operator: Operator = "operator",
    follow: Annotated[bool, typer.Option(help="Go on showing until interrupted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """Show the round, the devices, the cohorts and their divergences.

    Example: relief fleet status --config fleet.toml --follow
    """
    console = Console()
    name, broker = _where(config, host, port, fleet)
    with Watch(name, connection(broker, f"operator-{operator}-status")) as watch:
        summary = watch.next(broker.connect_timeout + 2.0)
        if summary is None:
            typer.echo(f"fleet {name}: no coordinator has said anything on {broker.host}:{broker.port}", err=True)
            raise typer.Exit(1)
        if as_json:
            typer.echo(json.dumps(summary))
            return
        console.print(fleet_panel(summary, name))
        if follow:
            _follow(console, watch, name, summary)


def _follow(console: Console, watch: Watch, name: str, summary: dict[str, Any]) -> None:
    try:
        with Live(fleet_panel(summary, name), console=console, refresh_per_second=4) as live:
            while True:
                if summary := watch.next(1.0) or summary:
                    live.update(fleet_panel(summary, name))
    except KeyboardInterrupt:
        return


def _steer(
    kind: str, args: dict[str, Any], config: Path | None, host: str, port: int, fleet: str, operator: str
) -> None:
    """Send a request and wait for its reply; exit code 1 if it is refused or nobody answers."""
    name, broker = _where(config, host, port, fleet)
    topics, identity = Topics(name), f"operator-{operator}-steer"
    request = Request.model_validate({"id": secrets.token_hex(8), "operator": identity, "kind": kind, "args": args})
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    transport = connection(broker, identity)
    transport.open(inbox.put)
    end, reply = time.monotonic() + broker.connect_timeout + 5.0, None
    try:
        while reply is None and (left := end - time.monotonic()) > 0:
            try:
                event = inbox.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(event, Connected):
                transport.subscribe(topics.reply(identity))
                transport.publish(topics.coordinator("request"), request.encode())
            elif isinstance(event, Stopped):
                typer.echo(event.reason, err=True)
                raise typer.Exit(1)
            elif isinstance(event, Received):
                found = decode(Reply, event.payload)
                reply = found if found.id == request.id else None
    finally:
        transport.close()
    if reply is None:
        typer.echo(f"fleet {name}: the coordinator did not answer; is it running?", err=True)
        raise typer.Exit(1)
    typer.echo(f"fleet {name}: {kind}: {'done' if reply.ok else reply.reason}")
    raise typer.Exit(0 if reply.ok else 1)


@app.command()
def pause(
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 1883,
    fleet: Name = "relief",
    operator: Operator = "operator",
) -> None:
    """Finish the round that is open and begin no other.

    Example: relief fleet pause --config fleet.toml
    """
    _steer("pause", {}, config, host, port, fleet, operator)


@app.command()
def resume(
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 1883,
    fleet: Name = "relief",
    operator: Operator = "operator",
) -> None:
    """Go on after a pause.

    Example: relief fleet resume --config fleet.toml
    """
    _steer("resume", {}, config, host, port, fleet, operator)


@app.command()
def quarantine(
    device: str,
    reason: Annotated[str, typer.Option(help="Why; the device is told.")] = "by an operator",
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 1883,
    fleet: Name = "relief",
    operator: Operator = "operator",
) -> None:
    """Leave a device out: it is neither asked nor heard until released.

    Example: relief fleet quarantine band-3 --reason "sensor is loose"
    """
    _steer("quarantine", {"device": device, "reason": reason}, config, host, port, fleet, operator)


@app.command()
def release(
    device: str,
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 1883,
    fleet: Name = "relief",
    operator: Operator = "operator",
) -> None:
    """Take a quarantined device in again.

    Example: relief fleet release band-3
    """
    _steer("release", {"device": device}, config, host, port, fleet, operator)
