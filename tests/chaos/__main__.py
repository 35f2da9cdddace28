"""python -m tests.chaos [FAULTS] [--devices N] [--seed S]: kill -9, SIGSTOP and pulled cables on a real fleet.

The last line is the verdict with its figures; recovery is the time from the end of a fault to the next committed round.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.evidence import Evidence
from tests.chaos.fleet import NAME, Fleet, until

RECOVERY = 90.0  # seconds after a fault within which a round must be committed


class Chaos:
    """Strikes one fault after the other and waits each time until the fleet commits again."""

    def __init__(self, fleet: Fleet, evidence: Evidence, seed: int) -> None:
        self.fleet, self.evidence, self.random = fleet, evidence, random.Random(seed)
        self.kinds: Counter[str] = Counter()
        self.recoveries: list[float] = []
        self.resumes: list[float] = []  # from starting a killed coordinator to its first word
        self.failures: list[str] = []

    def strike(self) -> None:
        """One fault, and the recovery from it."""
        draw = self.random
        party = draw.choice(["coordinator", "coordinator", "broker", *self.fleet.devices])
        kind = draw.choice([self.kill, self.stop] if party == "broker" else [self.kill, self.stop, self.pull])
        name = party if party in ("coordinator", "broker") else "device"
        self.kinds[f"{name} {kind.__name__}"] += 1
        kind(party)
        before, ended = self.evidence.round, time.monotonic()
        if until(lambda: self.evidence.round > before, RECOVERY):
            self.recoveries.append(time.monotonic() - ended)
        else:
            self.failures.append(f"no round within {RECOVERY:g} s after {party} {kind.__name__}")
        self.failures += self.fleet.dead()
        time.sleep(draw.uniform(0.0, 0.5))

    def kill(self, party: str) -> None:
        """kill -9, and a restart a little later."""
        self.fleet.kill(party)
        time.sleep(self.random.uniform(0.0, 1.5))
        boots, began = len(self.evidence.boots), time.monotonic()
        self.fleet.restart(party)
        if party == "coordinator":
            until(lambda: len(self.evidence.boots) > boots, 60.0)
            self.resumes.append(time.monotonic() - began)

    def stop(self, party: str) -> None:
        """SIGSTOP: the process hangs, and goes on as if nothing had been."""
        self.fleet.signal(party, signal.SIGSTOP)
        time.sleep(self.random.uniform(0.2, 5.0))
        self.fleet.signal(party, signal.SIGCONT)

    def pull(self, party: str) -> None:
        """The party's cable is pulled out."""
        seconds = self.random.uniform(0.1, 4.0)
        self.fleet.cables[party].pull(seconds)
        time.sleep(seconds)


def spread(values: list[float]) -> str:
    """Median, 95th percentile and largest."""
    if not values:
        return "none"
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[int(0.95 * (len(ordered) - 1))]:.1f} / {ordered[-1]:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("faults", nargs="?", type=int, default=100)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="relief-chaos-") as folder, Fleet(Path(folder), given.devices) as fleet:
        evidence = Evidence(fleet.run, NAME, fleet.broker.port)
        chaos = Chaos(fleet, evidence, given.seed)
        try:
            if not until(lambda: evidence.round >= 2 or fleet.dead(), 120.0) or fleet.dead():
                chaos.failures += ["the fleet did not begin", *fleet.dead()]
            while sum(chaos.kinds.values()) < given.faults and not chaos.failures:
                chaos.strike()
        finally:
            evidence.close()
    for kind, count in sorted(chaos.kinds.items()):
        print(f"  {count:5} x {kind}")
    for failure in (*chaos.failures, *evidence.contradictions):
        print(f"  {failure}")
    broken = len(chaos.failures) + len(evidence.contradictions)
    print(f"  recovery, median / 95 % / most: {spread(chaos.recoveries)}; a killed coordinator speaks again after "
          f"{spread(chaos.resumes)} (starting Python included)")  # fmt: skip
    print(
        f"{'FAILED' if broken else 'OK'}: {sum(chaos.kinds.values())} faults, {given.devices} devices, "
        f"{evidence.round} rounds committed, {evidence.updates} updates counted, {len(evidence.contradictions)} rounds "
        f"lost or updates counted twice, {len(chaos.failures)} without recovery, in {time.monotonic() - began:.0f} s"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
