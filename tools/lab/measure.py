"""The same experiment on the wall clock: real device processes over Mosquitto, each with its share of a CPU core.

Devices, data, model and local rule are those of the simulator's world, so that simulated and measured figures of one
fleet can stand beside each other.
"""

from __future__ import annotations

import json
import queue
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Literal

from broker_config.launcher import Broker
from coordinator.strategies import strategy
from models.spec import Mode
from protocol.config import BrokerConfig
from protocol.messages import Request, Status, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received
from protocol.waiting import take
from sensors.locate import find
from tools.demo.plan import DemoDevice, fleet_sections
from tools.demo.processes import Processes, shares
from tools.demo.report import Run
from tools.lab.calibrate import as_toml, calibrated
from tools.lab.fleet import fleet
from tools.lab.plan import Cell, Experiment, ExperimentError, Method
from tools.lab.world import World, world

NAME = "measured"  # of the fleet on the broker
START_SECONDS = 180.0  # until eight interpreters have imported torch on a busy machine
SCORE_SECONDS = 60.0  # for the scores that are behind when the last round is done
TRAIN = 16 / 24  # of the time of every class: sensors.splits

Say = Callable[[str], None]
Step = Callable[[float], object]  # hears how much of the measuring is done, from 0 to 1
Result = dict[str, Any]


class Births:
    """What every device last said of itself, from its retained status."""

    def __init__(self, broker: BrokerConfig) -> None:
        self._transport, self._topics = MqttTransport(broker, f"operator-{NAME}-measure"), Topics(NAME)
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.of: dict[str, Status] = {}

    def __enter__(self) -> Births:
        self._transport.open(self._inbox.put)
        return self

    def __exit__(self, *trace: object) -> None:
        self._transport.close()

    def ask(self, kind: Literal["pause"]) -> None:
        """Tell the coordinator, as an operator would."""
        request = Request(id=secrets.token_hex(8), operator="measure", kind=kind)
        self._transport.publish(self._topics.coordinator("request"), request.encode())

    def listen(self, seconds: float) -> None:
        """Take in what comes within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                event = take(self._inbox, left)
            except queue.Empty:
                return
            if isinstance(event, Connected):
                self._transport.subscribe(self._topics.device("+", "status"))
            elif isinstance(event, Received) and (where := self._topics.parse(event.topic)):
                self.of[where[1]] = decode(Status, event.payload)


@dataclass(frozen=True)
class Measured:
    """What came of it.

    results   like those of tools.lab.cells, with `clock` "wall"
    fleet     the file of the fleet as its processes said it is
    shares    tier -> (share of a core that it was to have, median of what its devices had while they trained)
    """

    results: list[Result]
    fleet: Path
    shares: dict[str, tuple[float, float]]


def measure(experiment: Experiment, folder: Path, say: Say = print, step: Step = lambda done: None) -> Measured:
    """Run every method of the experiment for real, one after the other on the same processes.

    The reference runs for its rounds, every other method until its share of the reference's wall clock. Raises
    ExperimentError for what cannot be measured, RuntimeError where a process falls, BrokerFailed without Mosquitto.
    """
    cells, where = _cells(experiment), _world(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    results, record = [], []
    with Broker() as broker, Processes(folder / "logs") as parties:
        meet = BrokerConfig(port=broker.port)
        with Births(meet) as births:
            clock = 0.0
            for n, cell in enumerate(cells):
                until = experiment.methods[cell.method].until
                rounds = experiment.rounds["full"] if cell.method == experiment.reference or not until else 0
                file = folder / f"{cell.method}.toml"
                file.write_text(configuration(experiment, cell, where, folder / cell.method, meet, rounds))
                if n == 0:
                    for device in where.devices:
                        parties.device(device.id, file)
                    _gather(parties, births, where)
                end = until * clock if not rounds else inf

                def share(part: float, n: int = n) -> None:
                    step((n + part) / len(cells))

                run = _one(parties, births, cell, folder / cell.method, rounds, end, share)
                clock = clock or run.seconds
                results.append(result(cell, where, run))
                record += run.rounds if n == 0 else []
                say(f"{cell.method}: {len(run.rounds)} rounds in {run.seconds:.0f} s of wall clock")
            parties.stop(*(d.id for d in where.devices))
            again = calibrated(where.fleet, where.spec, births.of, record)
    path = folder / f"{where.fleet.name}.toml"
    path.write_text(as_toml(again, "Speeds and latency as the processes of `relief experiment measure` said."))
    return Measured(results, path, _shares(where, folder / "logs"))


def _shares(where: World, logs: Path) -> dict[str, tuple[float, float]]:
    had = shares(logs, [d.id for d in where.devices])
    found = {}
    for tier in where.fleet.tier:
        own = [had[d.id] for d in where.devices if d.tier == tier.name and d.id in had]
        if tier.cpu and own:
            found[tier.name] = tier.cpu, median(own)
    return found


def _cells(e: Experiment) -> list[Cell]:
    """The reference first. ExperimentError where something of the file has no counterpart in real processes."""
    if e.modes != [Mode.FULL] or len(e.fleets) != 1:
        raise ExperimentError(f"{e.name}: only one fleet in mode full is measured; set fleets and modes so")
    for name, method in e.methods.items():
        cls = strategy(method.strategy)
        changed = [option for option, value in method.options.items() if getattr(cls, option, None) != value]
        if changed:
            raise ExperimentError(f"{e.name}: {name}: a coordinator has no option {', '.join(changed)}: leave it out")
        if "full" not in method.learning_rate:
            raise ExperimentError(f"{e.name}: {name}: give its learning_rate for mode full; none is tuned here")
    order = sorted(e.methods, key=lambda name: name != e.reference)
    return [Cell(m, e.fleets[0], Mode.FULL, e.folds[0], e.seeds[0], e.methods[m].learning_rate["full"]) for m in order]


def _world(e: Experiment) -> World:
    """The simulator's world. ExperimentError where a fleet's model would have other inputs than the simulator's."""
    where = world(fleet(e.fleets[0]), e.folds[0], e.seeds[0], model=e.spec(Mode.FULL), public=e.public.get("full", 0))
    nobody = [m.name for m in find(where.fleet.dataset).dataset.modalities if m.name not in where.spec.names]
    if nobody:
        raise ExperimentError(f"fleet {where.fleet.name}: nobody owns {', '.join(nobody)}: give them to a tier")
    return where


def _one(parties: Processes, births: Births, cell: Cell, folder: Path, rounds: int, until: float, share: Step) -> Run:
    """One method until its coordinator has done its rounds, or for so many seconds of wall clock; then its scores."""
    name, began, record = f"coordinator-{cell.method}", time.monotonic(), folder / "metrics.jsonl"
    if record.is_file():
        raise RuntimeError(f"{folder} holds a run already: measure into a fresh folder")
    parties.coordinator(name, folder.parent / f"{cell.method}.toml")
    paused = 0.0
    while True:
        births.listen(0.25)
        if fallen := parties.fallen():
            raise RuntimeError(fallen)
        run, now = Run.read(cell.method, folder) if record.is_file() else Run(cell.method, [], []), time.monotonic()
        if parties.ended(name):  # it has scored its last round
            break
        if run.rounds:
            share(len(run.rounds) / rounds if rounds else run.seconds / until)
        if not run.rounds:
            if now - began > START_SECONDS:
                raise RuntimeError(f"no round was done within {START_SECONDS:.0f} s; see {parties.folder}")
        elif not paused and run.seconds >= until:
            births.ask("pause")  # scoring may be behind the rounds
            paused = now
        elif paused and (_scored(run) or now - paused > SCORE_SECONDS):
            break
    parties.stop(name)
    return Run(cell.method, *_cut(Run.read(cell.method, folder), until))


def _scored(run: Run) -> bool:
    """Whether nothing waits for its score: where rounds are quicker some are left out, but never the last."""
    return bool(run.scores) and run.scores[-1]["round"] >= run.rounds[-1]["round"]


def _cut(run: Run, until: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rounds and scores without what came while the coordinator was asked to pause."""
    zero = run.rounds[0]["began"]
    kept = [r for r in run.rounds if r["ended"] - zero <= until] or run.rounds[:1]
    return kept, [s for s in run.scores if s["round"] <= kept[-1]["round"]]


def _gather(parties: Processes, births: Births, where: World) -> None:
    """Wait until every process holds what its simulated twin holds: the fleet's normalisation is made of it once.

    RuntimeError where they come to hold something else, since the comparison would be void.
    """
    began = time.monotonic()
    while True:
        births.listen(0.25)
        held = {d.id: births.of[d.id].windows if d.id in births.of else 0 for d in where.devices}
        others = [d for d in where.devices if held[d.id] != len(d.windows)]
        if not others:
            return
        if fallen := parties.fallen():
            raise RuntimeError(fallen)
        if time.monotonic() - began > START_SECONDS:
            d = others[0]
            raise RuntimeError(f"{d.id} holds {held[d.id]} training windows, its simulated twin {len(d.windows)}")


def configuration(e: Experiment, cell: Cell, where: World, folder: Path, broker: BrokerConfig, rounds: int) -> str:
    """The fleet and one method as a configuration file of the product; 0 rounds end when somebody says so."""
    method, model = e.methods[cell.method], e.model
    local = e.settings(method, cell.rate, cell.seed).local
    lines = [
        f'fleet = "{NAME}"',
        "",
        "[broker]",
        f"port = {broker.port}",
        "",
        "[model]",
        f'dataset = "{where.fleet.dataset}"',
        f"widths = {list(model.widths)}",
        f"kernel = {model.kernel}",
        f"bins = {model.bins}",
        f"fusion = {model.fusion}",
        f"seed = {cell.seed}",
        "",
        "[coordinator]",
        f'folder = "{folder.resolve()}"',
        f'strategy = "{method.strategy}"',
        f"rounds = {rounds}",
        f"expect = {len(where.devices)}",
        "gather = 120",
        f"deadline = {_quoted(method.deadline)}",
        f"joules = {method.joules}",
        f"bytes = {method.bytes}",
        "",
        "[coordinator.training]",
        f"learning_rate = {local.lr}",
        f"momentum = {local.momentum}",
        f"batch = {local.batch}",
        f"epochs = {_epochs(e, method)}",
        f"dropout = {local.dropout}",
        f"clip = {local.clip}",
        f'wire = "{local.wire}"',
        f"seed = {cell.seed}",
    ]
    tiers = where.fleet.tier
    lines += fleet_sections(
        where.fleet.dataset,
        where.held_out,
        [DemoDevice(d.id, d.tier, d.owned, d.subject, part(where, d.id)) for d in where.devices],
        folder.parent.resolve() / "state",
        quotas={t.name: t.cpu for t in tiers},
        watts={t.name: t.watts for t in tiers},
        overlap=find(where.fleet.dataset).dataset.overlap,
    )
    return "\n".join(lines) + "\n"


def part(where: World, device: str) -> tuple[float, float]:
    """Which part of every class's time the device holds."""
    mine = where.train.take(next(d.windows for d in where.devices if d.id == device))
    return float(mine.position.min()), float(mine.stop.max())


def _quoted(deadline: str | float) -> str:
    return f'"{deadline}"' if isinstance(deadline, str) else str(deadline)


def _epochs(e: Experiment, method: Method) -> float:
    return e.epochs if method.epochs is None else method.epochs


def result(cell: Cell, where: World, run: Run) -> Result:
    """A measured run as a cell's result: joules from the fleet file's watts and the devices' own seconds.

    bytes_down counts a block once, as it is published, however many devices fetch it.
    """
    idle = sum(d.idle_watts for d in where.devices)
    zero = run.rounds[0]["began"]
    points = []
    for scores in run.scores:
        past = [r for r in run.rounds if r["round"] <= scores["round"]]
        last = past[-1]
        seconds = last["ended"] - zero
        joules = sum(r["joules"] for r in past)
        steps = [max(d["steps"].values(), default=0) for d in last["devices"].values()]
        points.append(
            {
                "round": scores["round"],
                "seconds": seconds,
                "joules": joules,
                "joules_idle": joules + idle * seconds,
                "bytes_up": sum(r["bytes_up"] for r in past),
                "bytes_down": sum(r["bytes_down"] for r in past),
                "loss": last["loss"],
                "steps": sum(steps) / max(len(steps), 1),
                **{k: v for k, v in scores.items() if k not in ("kind", "round", "at")},
            }
        )
    about = {"method": cell.method, "fleet": where.fleet.name, "mode": cell.mode.value, "fold": cell.fold}
    return {**about, "seed": cell.seed, "rate": cell.rate, "tuning": False, "clock": "wall", "points": points}


def keep(results: list[Result], folder: Path) -> None:
    """Results as files beside those of simulated runs."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for one in results:
        (folder / "cells" / f"{one['method']}.json").write_text(json.dumps(one))
