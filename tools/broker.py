"""`relief broker`: from a list of devices to a hardened Mosquitto, and what a fleet's life brings afterwards."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer

from broker_config import deployment, names, requests
from broker_config.acl import Part
from broker_config.check import Finding, inspect
from broker_config.directory import DEFAULT_MODEL, BadDirectory, Directory, write
from broker_config.launcher import Broker, BrokerFailed
from broker_config.settings import Bridge
from tools import broker_live
from tools.broker_live import NotRunning
from tools.exit_codes import tell
from tools.shown import Json, print_json

app = typer.Typer(no_args_is_help=True, help="Certificates, access rules and Mosquitto's configuration.")

Where = Annotated[Path, typer.Argument(metavar="DIR", help="The broker's folder.")]
Fleet = Annotated[str, typer.Option(help="The fleet's name.")]
Identity = Annotated[str, typer.Argument(help="A device, an operator's tool or a coordinator, as in identities/.")]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (BrokerFailed, NotRunning, ValueError) as error:
        raise typer.Exit(tell(error).number) from None


@app.command()
def init(
    where: Where,
    fleet: Fleet,
    devices: Annotated[str, typer.Option(help="A file with a name a line, or a number.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address the broker is reached by; repeatable.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the TLS listener.")] = 8883,
    operator: Annotated[
        list[str] | None, typer.Option(help="An operator: NAME, or NAME-TOOL for one tool; repeatable.")
    ] = None,
    model_bytes: Annotated[int, typer.Option(min=1, help="Size of the model, for the queue limits.")] = DEFAULT_MODEL,
    home: Annotated[Path | None, typer.Option(help="Where DIR/broker will live on the broker's host.")] = None,
) -> None:
    """Make a CA, a certificate for everybody, Mosquitto's configuration and its access list.

    Example: relief broker init site --fleet ward3 --devices devices.txt --host broker.example.org
    """
    with _one_line_errors():
        wanted = names.devices(devices)
        names.check_fleet(fleet)
        people = [names.operator(who) for who in operator or ["operator"]]
        fresh = not where.exists() or not any(where.iterdir())
        hosts = list(dict.fromkeys([*(host or []), "localhost", "127.0.0.1"]))
        directory = Directory.create(where, hosts=hosts, port=port, home=home, model_bytes=model_bytes)
        try:
            directory.add_fleet(fleet)
            for name in wanted:
                directory.add_device(fleet, name)
            _operators(directory, fleet, people)
            directory.save()
            deployment.write_all(directory)
        except BaseException:
            if fresh:
                shutil.rmtree(where, ignore_errors=True)
            raise
        typer.echo(directory.summary())
        typer.echo(f"Next: relief broker up {where}    (identities to hand out: {where}/identities/{fleet}/)")


@app.command()
def add(
    where: Where,
    fleet: Fleet,
    devices: Annotated[str | None, typer.Option(help="A file with a name a line, or a number.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="One device; repeatable.")] = None,
    operator: Annotated[
        list[str] | None, typer.Option(help="An operator: NAME, or NAME-TOOL for one tool; repeatable.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="A site whose broker speaks for --devices here.")] = None,
    csr: Annotated[
        list[Path] | None,
        typer.Option(help="A board's signing request, whose common name is the device; repeatable. With --device or "
                          "--devices, from these alone."),
    ] = None,
) -> None:  # fmt: skip
    """Add devices, operators, a site's bridge or a whole fleet to a broker; it takes them without a restart.

    Example: relief broker add site --fleet ward --csr request.csr --device bed-7
    """
    with _one_line_errors():
        directory = Directory.open(where)
        wanted = [*(names.devices(devices) if devices else []), *(device or [])]
        people = [names.operator(who) for who in operator or []]
        if csr:
            if site is not None:
                raise BadDirectory("--csr and --site exclude each other: a site's broker answers for its own boards")
            _answer(directory, fleet, csr, wanted)
            return
        if fleet not in directory.record.fleets():
            directory.add_fleet(fleet)
        if site is not None:
            directory.add_bridge(fleet, site, wanted)
        else:
            for name in wanted:
                directory.add_device(fleet, name)
        _operators(directory, fleet, people)
        _apply(directory)
        typer.echo(f"{len(wanted)} devices and {len(people)} operators added to fleet {fleet}")


@app.command()
def rotate(where: Where, name: Identity) -> None:
    """Give an identity a new key and refuse the old one; whoever is connected with it is cut off.

    Example: relief broker rotate site band-3
    """
    with _one_line_errors():
        directory = Directory.open(where)
        identity = directory.find(name)
        if identity.key:
            raise BadDirectory(
                f"{identity.name} made its own key, so only it can make another: `relief broker revoke {where} "
                f"{identity.name}`, have it make a new request, and `relief broker add --csr`"
            )
        directory.revoke(identity, forget=False)
        directory.issue(identity)
        if _apply(directory):
            broker_live.cut(directory, identity.name)
        typer.echo(f"{identity.name}: the new key is in {directory.folder(identity)}; hand it out")


@app.command()
def renew(
    where: Where,
    days: Annotated[int, typer.Option(min=0, help="Renew what ends within so many days.")] = 60,
) -> None:
    """Renew certificates that end soon, and the list of revoked ones, whose end would lock everybody out.

    Example: relief broker renew site --days 90
    """
    with _one_line_errors():
        directory = Directory.open(where)
        before = datetime.now(timezone.utc) + timedelta(days=days)
        due = [one for one in directory.record.identities.values() if one.until < before]
        for one in due:
            directory.issue(one)
        directory.renew_broker()
        _apply(directory)
        typer.echo(f"renewed: the broker, the CRL, {len(due)} of {len(directory.record.identities)} identities")
        for one in due:
            typer.echo(f"  hand out {directory.folder(one)}")


@app.command()
def revoke(where: Where, name: Identity) -> None:
    """Lock an identity out for good: its certificate, its rights, and the session it has now.

    Example: relief broker revoke site band-3
    """
    with _one_line_errors():
        directory = Directory.open(where)
        identity = directory.find(name)
        directory.revoke(identity, forget=True)
        if _apply(directory):
            broker_live.cut(directory, identity.name)
            if identity.part is Part.DEVICE:
                broker_live.bury(directory, identity)
            typer.echo(f"{identity.name} is revoked and its session is cut")
        else:
            typer.echo(
                f"{identity.name} is revoked; its live session ends only when the broker's host has restarted it"
            )


@app.command()
def up(
    where: Annotated[Path | None, typer.Argument(metavar="DIR", help="The broker's folder; none: loopback.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Another port than the folder's.")] = None,
) -> None:
    """Run the broker in the foreground until Ctrl-C: the folder's, or an open one on loopback.

    Example: relief broker up site
    """
    with _one_line_errors():
        broker = Broker(port=port or 1883) if where is None else secure(Directory.open(where), port)
        stop = threading.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        with broker:
            kind = "loopback, anybody may do anything" if where is None else "mTLS, access by certificate"
            typer.echo(f"Mosquitto {broker.mosquitto.program} (process {broker.pid}) on port {broker.port}: {kind}")
            while not stop.wait(0.5):
                if not broker.running:
                    raise BrokerFailed(f"Mosquitto ended by itself:\n{broker.log}")
        typer.echo("stopped")


@app.command()
def check(where: Where, as_json: Json = False) -> None:
    """Look for what is wrong: dates, keys, drift, and the running broker from outside.

    Example: relief broker check site
    """
    with _one_line_errors():
        directory = Directory.open(where)
        findings = [*inspect(directory), *broker_live.look(directory)]
    bad = sum(finding.ok is False for finding in findings)
    warnings = sum(finding.ok is None for finding in findings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _show(finding)
        typer.echo(f"{len(findings)} checks: {bad} failed, {warnings} warnings")
    raise typer.Exit(1 if bad else 0)


@app.command()
def purge(where: Where, fleet: Annotated[str, typer.Argument(help="The fleet's name.")]) -> None:
    """Clear all that the broker retains of a fleet.

    Example: relief broker purge site ward3
    """
    with _one_line_errors():
        cleared = broker_live.purge(Directory.open(where), fleet)
        typer.echo(f"{len(cleared)} retained messages of fleet {fleet} cleared")


@app.command()
def link(
    where: Where,
    fleet: Fleet,
    to: Annotated[str, typer.Option(help="HOST:PORT of the central broker.")],
    identity: Annotated[Path, typer.Option(help="The folder of the bridge's identity, made by `add --site` there.")],
) -> None:
    """Bridge this site's broker to a central one: its coordinator then reaches this site's devices.

    Example: relief broker link site --fleet ward3 --to central.example.org:8883 --identity bridge
    """
    with _one_line_errors():
        directory = Directory.open(where)
        host, _, port = to.rpartition(":")
        if not host or not port.isdecimal():
            raise BadDirectory(f"--to {to}: write HOST:PORT")
        devices = tuple(one.own for one in directory.record.of(Part.DEVICE, fleet))
        if not devices:
            raise BadDirectory(f"{where} has no devices of fleet {fleet}")
        for file in ("ca.pem", "cert.pem", "key.pem"):
            target = directory.path / "broker" / "bridge" / file
            target.parent.mkdir(exist_ok=True, mode=0o700)
            shutil.copy(identity / file, target)
        directory.record.links = [Bridge(identity.name, fleet, host, int(port), devices)]
        directory.save()
        typer.echo(f"{len(devices)} devices of fleet {fleet} are bridged to {to}; restart this broker")


def secure(directory: Directory, port: int | None = None) -> Broker:
    """The folder's broker, not yet started; on its own port if none is given, on a free one with 0."""
    home = directory.path / "broker"
    number = directory.record.port if port is None else port
    return Broker(
        folder=home,
        port=number or None,
        configure=lambda port, folder: directory.configuration(port, folder.absolute(), user=directory.runs_as()),
    )


def _answer(directory: Directory, fleet: str, files: list[Path], wanted: list[str]) -> None:
    """Sign boards' requests: all of them, or none if one cannot be signed."""
    asked = {file: requests.read(file) for file in files}
    if fleet not in directory.record.fleets():
        raise BadDirectory(f"no fleet {fleet} here: there are {', '.join(directory.record.fleets())}")
    for file, one in asked.items():
        if wanted and one.device not in wanted:
            raise BadDirectory(f"{file}: asks for the name {one.device!r}, expected was {', '.join(wanted)}")
    if lacking := sorted(set(wanted) - {one.device for one in asked.values()}):
        raise BadDirectory(f"no request is from {', '.join(lacking)}: add them without --csr, or give their requests")
    made = directory.answer(fleet, list(asked.values()))
    _apply(directory)
    for file, identity in zip(asked, made, strict=True):
        cert, beside = directory.folder(identity) / "cert.pem", file.with_name(f"{identity.name}.cert.pem")
        try:
            write(beside, cert.read_bytes())
        except OSError as error:
            typer.echo(f"{beside}: cannot be written: {error.strerror}", err=True)
            beside = cert
        typer.echo(
            f"{identity.name}: signed until {identity.until:%Y-%m-%d}; "
            f"copy {beside} to the board as /etc/relief/identity/cert.pem"
        )


def _operators(directory: Directory, fleet: str, people: list[tuple[str, tuple[str, ...]]]) -> None:
    """One identity for each of an operator's tools, because two on one would kick each other for ever."""
    for person, tools in people:
        for tool in tools:
            directory.add_operator(fleet, person, tool)


def _apply(directory: Directory) -> bool:
    """Save, and have the running broker take it; whether it runs here."""
    directory.save()
    if rose := deployment.resize(directory):
        typer.echo(
            f"{', '.join(rose)}: copy {directory.path}/deploy/relief-broker.service.d to /etc/systemd/system again, "
            "`systemctl daemon-reload` and `systemctl restart relief-broker`; with compose `up -d`"
        )
    if broker_live.reload(directory):
        return True
    typer.echo(f"the broker does not run here: copy {directory.path}/broker to its host and reload it there")
    return False


def _show(finding: Finding) -> None:
    mark, colour = {True: ("ok  ", "green"), None: ("warn", "yellow"), False: ("FAIL", "red")}[finding.ok]
    typer.secho(mark, fg=colour, nl=False)
    typer.echo(f"  {finding.check:<10} {finding.told}" + (f"\n      -> {finding.todo}" if finding.todo else ""))
