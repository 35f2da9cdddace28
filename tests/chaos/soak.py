"""python -m tests.chaos.soak [ROUNDS] [--devices N]: many rounds with churn; memory, files and disk must stay flat.

Devices are killed and come back all the time. The last line is the verdict with its figures.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.chaos.evidence import Evidence
from tests.chaos.fleet import NAME, Fleet, until

STALL = 300.0  # seconds without a committed round that end the run
CHURN = 10.0  # seconds on average between two devices that are killed and come back
MEMORY = 1.15  # the last quarter's median memory may be this much above the second's
FILES = 3  # open files that the last quarter may have above the second
DISK = 64 * 1024 * 1024  # bytes that the coordinator's folder may hold


def usage(pid: int) -> tuple[int, int]:
    """(resident bytes, open files) of a process."""
    process = psutil.Process(pid)
    return process.memory_info().rss, process.num_fds()


def disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


class Soak:
    """Samples of every party, by name: (round, bytes, files)."""

    def __init__(self, fleet: Fleet, evidence: Evidence) -> None:
        self.fleet, self.evidence, self.random = fleet, evidence, random.Random(1)
        self.samples: dict[str, list[tuple[int, int, int]]] = {"coordinator": [], "broker": [], "steady device": []}
        self.disk: list[tuple[int, int]] = []
        self.kills = 0

    def run(self, rounds: int) -> str:
        """Until so many rounds are committed; why it ended before, or nothing."""
        steady, *changing = self.fleet.devices
        next_churn, last, since = time.monotonic() + 10.0, 0, time.monotonic()
        while self.evidence.round < rounds:
            self._sample(steady)
            if self.evidence.round > last:
                if self.evidence.round // 100 > last // 100:
                    print(f"  round {self.evidence.round:,}, {self.kills} kills", flush=True)
                last, since = self.evidence.round, time.monotonic()
            if time.monotonic() > since + STALL:
                told = "\n".join(self._said(name) for name in ("coordinator", *self.fleet.devices))
                return f"no round within {STALL:g} s after round {last}; {waiting(self.evidence)}\n{told}"
            if dead := self.fleet.dead():
                return "; ".join(dead)
            if time.monotonic() > next_churn:
                name = self.random.choice(changing)
                self.fleet.kill(name)
                self.fleet.restart(name)
                self.kills += 1
                next_churn = time.monotonic() + self.random.expovariate(1 / CHURN)
            time.sleep(0.5)
        return ""

    def _said(self, name: str) -> str:
        """The end of a party's log."""
        lines = (self.fleet.folder / f"{name}.log").read_text(errors="replace").splitlines()[-8:]
        return "\n".join(f"    {name}: {line}" for line in lines)

    def _sample(self, steady: str) -> None:
        pids = {"coordinator": self.fleet.processes["coordinator"].pid, "broker": self.fleet.broker.pid,
                "steady device": self.fleet.processes[steady].pid}  # fmt: skip
        for name, pid in pids.items():
            with contextlib.suppress(psutil.NoSuchProcess):  # who ended by itself is told of by dead()
                self.samples[name].append((self.evidence.round, *usage(pid)))
        self.disk.append((self.evidence.round, disk(self.fleet.run)))


def waiting(evidence: Evidence) -> str:
    """Who waits for what, as the coordinator's last summary tells it."""
    if evidence.summary is None:
        return "the coordinator has never said anything: it waits for its disk or for the broker, or does not run"
    when, summary = evidence.summary
    fields, age = summary.fields, time.monotonic() - when
    states = [
        f"{name} is {d['state']}{' (' + d['why'] + ')' if d['why'] else ''}" for name, d in fields["devices"].items()
    ]
    busy = [name for name, d in fields["devices"].items() if d["state"] == "training"]
    alarms = fields["alarms"] or "none"
    whom = f"the updates of {', '.join(busy)}" if busy else "a device that is ready"
    return (
        f"{age:.0f} s ago the coordinator was {summary.phase} round {summary.round}, {fields['deadline']:.0f} s before "
        f"its deadline, waiting for {whom}; alarms {alarms}; {', '.join(states) or 'it knew no device'}"
    )


def quarters(values: list[tuple[int, ...]], rounds: int, field: int) -> tuple[int, int]:
    """Medians of a field over the second and over the last quarter of the rounds."""

    def median(low: float, high: float) -> int:
        found = sorted(v[field] for v in values if low * rounds <= v[0] <= high * rounds)
        return found[len(found) // 2] if found else 0

    return median(0.25, 0.5), median(0.75, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=2000)
    parser.add_argument("--devices", type=int, default=4)
    given = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="relief-soak-") as folder, Fleet(Path(folder), given.devices) as fleet:
        evidence = Evidence(fleet.run, NAME, fleet.broker.port)
        soak = Soak(fleet, evidence)
        try:
            begun = until(lambda: evidence.round >= 1 or fleet.dead(), 120.0)
            failure = soak.run(given.rounds) if begun else f"the fleet did not begin: {waiting(evidence)}"
        except KeyboardInterrupt:  # the figures so far are worth something
            failure = f"interrupted after round {evidence.round}"
        finally:
            evidence.close()
    spent = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in spent)
    broken = [failure] if failure else []
    broken += evidence.contradictions
    for name, values in soak.samples.items():
        (bytes_2, bytes_4), (files_2, files_4) = (quarters(values, evidence.round, f) for f in (1, 2))
        print(f"  {name:13}  {bytes_2 / 2**20:7.1f} -> {bytes_4 / 2**20:7.1f} MiB,  {files_2} -> {files_4} files")
        if bytes_4 > MEMORY * bytes_2 + 2**20 or files_4 > files_2 + FILES:
            broken.append(f"{name} grows")
    most = max((size for _, size in soak.disk), default=0)
    if most > DISK:
        broken.append(f"{most:,} bytes on disk")
    print(*(f"  {one}" for one in broken), sep="\n", end="\n" if broken else "")
    print(
        f"{'FAILED' if broken else 'OK'}: {evidence.round:,} rounds, {given.devices} devices, {soak.kills} kills and "
        f"returns, {evidence.updates:,} updates counted, at most {most / 2**20:.1f} MiB on disk, {len(broken)} broken "
        f"promises, in {time.monotonic() - began:.0f} s and {cpu:.0f} s of CPU "
        f"({1000 * cpu / max(1, evidence.round):.0f} ms a round, all parties)"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
