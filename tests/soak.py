"""A fleet through a bad day: `python -m tests.soak` (`make soak`), `--quick` for the form that CI runs.

Eight device processes on recordings over Mosquitto, two of them with live sensors on topics whose labels an operator
sends. Undisturbed runs give the score to be held. Then one run with faults: a live sensor falls silent and comes back,
labels come late, the devices' network is cut, two devices are killed with -9 and started again. Judged: the final F1 is
within two standard deviations of the undisturbed runs, and nothing was counted twice. The last line is the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from broker_config.launcher import Broker
from coordinator.journal import Journal
from protocol.config import BrokerConfig
from protocol.messages import Answer, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received
from sensors.locate import find
from tests.feeder import Feeder, live_section
from tests.leaky_wire import Wire
from tools.demo.plan import DemoDevice, Plan, configuration, plan
from tools.demo.processes import Processes
from tools.demo.report import Run

FLEET = "demo"
START = 240.0  # seconds until eight interpreters have started on a small and busy machine


@dataclass(frozen=True)
class Day:
    """How long everything takes, in seconds: a run from its first accepted update, the network's cut, a sensor's
    silence, by how much labels are late. `floor`: smallest tolerance in F1, as few runs say little of their spread.
    """

    seconds: float
    undisturbed: int
    cut: float
    silent: float
    late: float
    floor: float


FULL = Day(seconds=150.0, undisturbed=5, cut=30.0, silent=15.0, late=10.0, floor=0.0)
QUICK = Day(seconds=30.0, undisturbed=2, cut=5.0, silent=5.0, late=3.0, floor=0.06)


@dataclass
class Outcome:
    """One run: final held-out and in-subject F1, what was counted, what went wrong."""

    held_out: float
    in_subject: float
    rounds: int
    counted: int
    accepted: int
    faults: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    last: frozenset[str] = frozenset()  # devices with updates in the last fifth of the rounds


class Ears:
    """Hears every answer at the broker itself: distinct updates that were accepted."""

    def __init__(self, port: int) -> None:
        self.accepted: set[str] = set()
        self.first = threading.Event()
        self._topics, self._up = Topics(FLEET), threading.Event()
        self._transport = MqttTransport(BrokerConfig(port=port), "operator-soak-ears")
        self._transport.open(self._event)
        if not self._up.wait(10):
            raise RuntimeError("soak: no connection to the broker within 10 s")

    def _event(self, event: Event) -> None:
        if isinstance(event, Connected):
            self._transport.subscribe(self._topics.device("+", "answer"))
            self._up.set()
        elif isinstance(event, Received):
            answer = decode(Answer, event.payload)
            if answer.accepted:
                self.accepted.add(answer.update)
                self.first.set()

    def close(self) -> None:
        self._transport.close()


def run(day: Day, fleet: Plan, folder: Path, *, seed: int, faults: bool) -> Outcome:
    """One run of the whole fleet; its files below `folder`."""
    folder.mkdir(parents=True)
    live = [d for d in fleet.devices if d.tier == "phone"]
    outcome = Outcome(0.0, 0.0, 0, 0, 0)
    with Broker() as broker, Wire(broker.port) as wire, Processes(folder / "logs") as processes:
        ears = Ears(broker.port)
        feeders = [Feeder(d, find(fleet.dataset).dataset, broker.port, FLEET, day.late * faults) for d in live]
        try:
            ours = _write(fleet, folder, broker.port, seed, live)
            theirs = _write(fleet, folder, wire.port, seed, live)
            for feeder in feeders:
                feeder.start()
            for device in fleet.devices:
                processes.device(device.id, theirs)
            processes.coordinator("coordinator", ours)
            if not _wait(time.monotonic() + START, processes, outcome, ears.first):
                outcome.wrong.append(f"no update was accepted within {START:.0f} s")
            elif not outcome.wrong:
                began = time.monotonic()
                if faults:
                    _bad_day(day, fleet, processes, wire, feeders, theirs, outcome)
                _wait(began + day.seconds, processes, outcome)
        finally:
            for feeder in feeders:
                feeder.stop()
            processes.stop("coordinator")
            processes.stop(*(d.id for d in fleet.devices))
            ears.close()
    _judge(folder, ears, outcome)
    return outcome


def _write(fleet: Plan, folder: Path, port: int, seed: int, live: list[DemoDevice]) -> Path:
    text = configuration(fleet, folder / "run", BrokerConfig(port=port), "relief", 0, seed=seed)
    text = re.sub(r"(?m)^quota = .*$", "quota = 0", text)  # what is asked here does not depend on speed
    # A fleet of eight need not spread its return over minutes, and the run is over before it would.
    text = text.replace(f"port = {port}", f"port = {port}\nreconnect_min = 1\nreconnect_max = 4", 1)
    for device in live:
        text = live_section(text, device, find(fleet.dataset).dataset, port)
    path = folder / f"fleet-{port}.toml"
    path.write_text(text)
    return path


def _bad_day(
    day: Day,
    fleet: Plan,
    processes: Processes,
    wire: Wire,
    feeders: list[Feeder],
    config: Path,
    outcome: Outcome,
) -> None:
    """One fault after the other while rounds go on."""
    victim = feeders[0]
    lost = victim.device.modalities[0]
    victim.silence(lost, day.silent)
    outcome.faults.append(f"{victim.device.id}: {lost} silent for {day.silent:g} s, labels {day.late:g} s late")
    time.sleep(day.silent / 2)
    for device in (fleet.devices[0], fleet.devices[-1]):
        processes.kill(device.id)
        outcome.faults.append(f"{device.id}: kill -9, started again after 1 s")
        time.sleep(1.0)
        processes.device(device.id, config)
    time.sleep(day.silent / 2)
    wire.cut(day.cut)
    outcome.faults.append(f"all devices: network cut for {day.cut:g} s, {wire.cuts} connections")


def _wait(end: float, processes: Processes, outcome: Outcome, what: threading.Event | None = None) -> bool:
    """Until `end`, or until `what` happens; at once where a process falls, which is noted. False where time ran out
    first."""
    awaited = what or threading.Event()
    while not awaited.is_set():
        if fallen := processes.fallen():
            outcome.wrong.append(fallen)
            return True
        if time.monotonic() >= end:
            return False
        awaited.wait(0.5)
    return True


def _judge(folder: Path, ears: Ears, outcome: Outcome) -> None:
    """What the record says: every round once, every accepted update in exactly one commit, once."""
    metrics = folder / "run" / "metrics.jsonl"
    if not metrics.exists():
        outcome.wrong.append("the coordinator wrote no record")
        return
    record = Run.read("soak", folder / "run")
    numbers = [r["round"] for r in record.rounds]
    if numbers != list(range(1, len(numbers) + 1)):
        outcome.wrong.append(f"the rounds on record are not 1, 2, 3, ...: {numbers}")
    outcome.held_out, outcome.in_subject = record.final("held_out"), record.final("in_subject")
    outcome.rounds, outcome.accepted = len(numbers), len(ears.accepted)
    outcome.counted = sum(r["updates"] for r in record.rounds)
    outcome.last = frozenset(d for r in record.rounds[-max(1, len(numbers) // 5) :] for d in r["devices"])
    pending = _journal(folder / "run", outcome)
    if not outcome.counted <= outcome.accepted <= outcome.counted + pending:
        outcome.wrong.append(
            f"{outcome.counted} updates were counted and {pending} not yet, {outcome.accepted} different ones accepted"
        )


def _journal(folder: Path, outcome: Outcome) -> int:
    """Note updates that the journal, as far back as it reaches, has twice; returns those not yet committed."""
    stored: list[str] = []
    committed: list[str] = []
    journal = Journal.open(folder / "journal")
    try:
        for r in journal.records(0):
            if r.kind == "update":
                stored.append(r.header["head"]["id"])
            elif r.kind == "commit":
                committed += r.header["updates"]
    finally:
        journal.close()
    for what, ids in (("stored", stored), ("committed", committed)):
        if len(set(ids)) != len(ids):
            outcome.wrong.append(f"the journal has {len(ids) - len(set(ids))} updates {what} twice")
    if not committed:
        outcome.wrong.append("the journal holds no commit")
    return len(set(stored) - set(committed))


def main() -> int:
    """Run it; exit code 0 where the verdict is PASS."""
    parser = argparse.ArgumentParser(description="A fleet through a bad day.")
    parser.add_argument("--quick", action="store_true", help="two undisturbed runs, short faults")
    parser.add_argument("--once", action="store_true", help="only a run with faults, judged by its counts")
    parser.add_argument("--folder", type=Path, help="where runs are kept; by default a folder that is removed")
    chosen = parser.parse_args()
    day = QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory(prefix="soak-") as aside:
        folder = (chosen.folder or Path(aside)).resolve() / time.strftime("%Y%m%d-%H%M%S")
        return _days(day, folder, 0 if chosen.once else day.undisturbed)


def _days(day: Day, folder: Path, undisturbed: int) -> int:
    name = "dsads" if os.environ.get("RELIEF_DATA") else "synthetic"
    fleet = plan(find(name), name)
    print(f"fleet: {len(fleet.devices)} devices on {fleet.dataset}, {day.seconds:.0f} s a run", flush=True)
    calm = []
    for n in range(undisturbed):
        calm.append(run(day, fleet, folder / f"undisturbed-{n}", seed=n, faults=False))
        _say(f"undisturbed {n + 1}", calm[-1])
    hit = run(day, fleet, folder / "disturbed", seed=day.undisturbed, faults=True)
    _say("disturbed", hit)
    for fault in hit.faults:
        print(f"  {fault}")
    scores = [c.held_out for c in calm]
    mean = statistics.mean(scores) if scores else 0.0
    tolerance = max(2 * statistics.stdev(scores), day.floor) if len(scores) > 1 else 0.0
    wrong = [w for o in (*calm, hit) for w in o.wrong]
    away = sorted({d.id for d in fleet.devices} - hit.last)
    if away:
        wrong.append(f"{', '.join(away)} did not come back")
    if hit.held_out < mean - tolerance:
        wrong.append(f"F1 {hit.held_out:.3f} is below {mean:.3f} - {tolerance:.3f}")
    result = {"undisturbed": scores, "disturbed": hit.held_out, "tolerance": tolerance, "wrong": wrong}
    print(json.dumps(result), flush=True)
    verdict = f"held-out F1 {hit.held_out:.3f} against {mean:.3f} +- {tolerance:.3f}, {hit.counted} updates, none twice"
    print(f"soak: PASS ({verdict})" if not wrong else f"soak: FAIL ({'; '.join(wrong)})", flush=True)
    return int(bool(wrong))


def _say(name: str, o: Outcome) -> None:
    print(
        f"{name}: held-out F1 {o.held_out:.3f}, in-subject {o.in_subject:.3f}, {o.rounds} rounds, "
        f"{o.counted} updates counted, {o.accepted} accepted" + "".join(f"\n  {w}" for w in o.wrong),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
