"""`relief demo`: broker, coordinator and eight device processes on this machine; RELIEF, then FedAvg, on one fleet."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live

from broker_config.launcher import Broker, BrokerFailed
from broker_config.mosquitto import STEPS, find, find_or_fetch
from coordinator.config import CoordinatorConfig
from protocol.config import BrokerConfig
from protocol.memory import MemoryTransport
from protocol.mqtt import MqttTransport
from protocol.transport import Transport
from sensors.locate import NAMES
from tools.demo.left import learning, starting
from tools.demo.page import page
from tools.demo.plan import QUOTAS, Plan, configuration, plan
from tools.demo.processes import PAGE, Processes, shares
from tools.demo.recordings import recordings
from tools.demo.report import Run, picture, show
from tools.demo.threads import Threads
from tools.panels import fleet_panel
from tools.shown import progress
from tools.watch import Watch

RELIEF, FEDAVG = "relief", "fedavg"
STRATEGY = {RELIEF: CoordinatorConfig().strategy, FEDAVG: "fedavg"}
FEDAVG_SECONDS = 75.0
START_SECONDS = 90.0  # until eight interpreters have imported torch on a small machine


def demo(
    data: Annotated[str, typer.Option(help=f"Recordings: {', '.join(NAMES)}.")] = "dsads",
    rounds: Annotated[int, typer.Option(min=15, help="RELIEF rounds.")] = 40,
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="Of the model and of every draw.")] = 0,
    secure: Annotated[bool, typer.Option("--secure", help="Certificates for everybody, and an access list.")] = False,
    dashboard: Annotated[bool, typer.Option(help="Serve the live page.")] = True,
) -> None:
    """Run a fleet of eight devices on this machine, with RELIEF and then with FedAvg, and compare them.

    Example: relief demo --data dsads
    """
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _demo(console, data, rounds, folder / time.strftime("demo-%Y%m%d-%H%M%S"), seed, secure, dashboard)
    except KeyboardInterrupt:
        console.print("stopped: every process of the demo has ended")
        raise typer.Exit(130) from None


def _demo(console: Console, data: str, rounds: int, folder: Path, seed: int, secure: bool, dashboard: bool) -> None:
    folder.mkdir(parents=True)
    found = recordings(data, folder / "data")
    demo = plan(found, "synthetic" if found.missing else data)
    console.print(f"Recordings: {demo.note}")
    for subject in dict.fromkeys(d.subject for d in demo.devices):
        worn = ", ".join(d.id for d in demo.devices if d.subject == subject)
        console.print(f"  subject {subject} wears {worn}", highlight=False)
    held_out = f"subject{'s' if len(demo.held_out) > 1 else ''} {', '.join(demo.held_out)}"
    console.print(f"  held out: {held_out}; rare modality: {demo.rare}")
    quotas = ", ".join(f"{tier} {quota:g}" for tier, quota in QUOTAS.items())
    console.print(f"Tiers, as shares of one CPU core: {quotas}\nRun folder: {folder}")
    try:
        with _broker(demo, folder.resolve() / "broker", secure) as broker, Processes(folder / "logs") as processes:
            kind = "mTLS, access by certificate" if secure else "loopback"
            console.print(f"Broker: {broker.mosquitto.program} on port {broker.port}, {kind}", highlight=False)
            identities = folder.resolve() / "broker" / "identities" / "demo" if secure else None
            meet = BrokerConfig(port=broker.port, identities=identities)
            view = MqttTransport(meet, "operator-demo-display")
            relief, fedavg = _both(console, processes, view, demo, folder, rounds, seed, meet, dashboard=dashboard)
    except BrokerFailed as error:
        if secure:
            raise
        console.print(f"[yellow]No Mosquitto here ({error}).[/]")
        console.print(
            "All parties run in this process over the in-memory transport instead, without CPU shares or page."
        )
        with Threads(folder / "logs") as threads:
            view_in = MemoryTransport(threads.memory, "operator-demo-display")
            meet = BrokerConfig(transport="memory")
            relief, fedavg = _both(console, threads, view_in, demo, folder, rounds, seed, meet)
    headline = show(console, demo, relief, fedavg, shares(folder / "logs", [d.id for d in demo.devices]))
    picture(folder / "demo.png", demo, (relief, fedavg))
    console.print(f"Picture: {folder / 'demo.png'}", highlight=False)
    console.print(headline, style="bold", soft_wrap=True)


def _both(
    console: Console,
    parties: Processes | Threads,
    view: Transport,
    demo: Plan,
    folder: Path,
    rounds: int,
    seed: int,
    meet: BrokerConfig,
    *,
    dashboard: bool = False,
) -> tuple[Run, Run]:
    """RELIEF, then FedAvg, on the same devices."""
    files = {
        method: _write(demo, folder, meet, method, count, seed) for method, count in ((RELIEF, rounds), (FEDAVG, 0))
    }
    page(console, parties, files[RELIEF], wanted=dashboard)
    with Watch("demo", view) as watch:
        try:
            for device in demo.devices:
                parties.device(device.id, files[RELIEF])
            relief = _run(console, parties, watch, folder, RELIEF, files[RELIEF], len(demo.devices))
            best = relief.final("held_out")
            fedavg = _run(console, parties, watch, folder, FEDAVG, files[FEDAVG], len(demo.devices), target=best)
        except BaseException:
            parties.stop_all()  # before anything else that takes time
            raise
        parties.stop(*(d.id for d in demo.devices), PAGE)
    return relief, fedavg


def _broker(demo: Plan, folder: Path, secure: bool) -> Broker:
    """A broker for this fleet: open on loopback, or of the `site` profile with a CA of its own."""
    if find() is None:
        with progress("fetching Mosquitto", STEPS, "steps") as step:
            found, told = find_or_fetch(step)
        if found is None:
            raise BrokerFailed(told)
    if not secure:
        return Broker()
    from broker_config.directory import Directory
    from tools.broker import secure as secured

    directory = Directory.create(folder, hosts=["localhost", "127.0.0.1"], port=8883, home=None, model_bytes=200_000)
    directory.add_fleet("demo")
    for device in demo.devices:
        directory.add_device("demo", device.id)
    directory.add_operator("demo", "demo", "display")
    directory.add_operator("demo", "demo", "dashboard")
    directory.save()
    return secured(directory, 0)


def _write(demo: Plan, folder: Path, meet: BrokerConfig, method: str, rounds: int, seed: int) -> Path:
    path = folder / f"{method}.toml"
    path.write_text(configuration(demo, (folder / method).resolve(), meet, STRATEGY[method], rounds, seed=seed))
    return path


def _run(
    console: Console,
    parties: Processes | Threads,
    watch: Watch,
    folder: Path,
    method: str,
    file: Path,
    devices: int,
    target: float = 2.0,
) -> Run:
    """One method until its rounds are done; FedAvg for FEDAVG_SECONDS or until its held-out F1 reaches `target`."""
    title = {RELIEF: "RELIEF", FEDAVG: "FedAvg"}[method]
    name = f"coordinator-{method}"
    parties.coordinator(name, file)
    began = time.monotonic()
    processes = 1 if method == FEDAVG else devices + 1  # that have to start: FedAvg finds the devices there
    first: float | None = None  # when round 1 began
    latest: dict[str, Any] | None = None
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while not parties.ended(name):
            now = time.monotonic()
            if latest and first:
                live.update(Group(learning(latest, now - first, FEDAVG_SECONDS), fleet_panel(latest, title)))
            else:
                line = starting(title, latest, processes, devices, now - began)
                live.update(Group(line, fleet_panel(latest, title)) if latest else line)
            summary = watch.next(0.5)
            if fallen := parties.fallen():
                raise typer.BadParameter(fallen)
            now = time.monotonic()
            if summary and summary["strategy"] == STRATEGY[method]:
                latest = summary
                if summary["phase"] == "training" and first is None:
                    first = now
                good = (summary["scores"] or {}).get("held_out", 0.0) >= target
                if method == FEDAVG and first and (now - first > FEDAVG_SECONDS or good):
                    break
            elif first is None and now - began > START_SECONDS:
                raise typer.BadParameter(f"nothing began within {START_SECONDS:.0f} s; see {parties.folder}")
            if method == FEDAVG and first and now - first > FEDAVG_SECONDS:
                break
    parties.stop(name)
    run = Run.read(title, folder / method)
    scores = f"F1 in-subject {run.final('in_subject'):.3f}, held-out {run.final('held_out'):.3f}"
    told = scores if run.scores else "not evaluated"
    console.print(f"{title}: {len(run.rounds)} rounds in {run.seconds:.0f} s, {told}", highlight=False)
    return run
