"""One run: a coordinator, a fleet of at least five devices, a broker and a bad day, all from one seed."""

from __future__ import annotations

import random
import traceback
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.quarantine import Limits
from coordinator.rounds import Pace
from coordinator.strategies.base import Settings, Strategy
from coordinator.strategies.relief import CohortSteps, Relief
from models.partition import initial, partition
from models.spec import InputSpec, ModelSpec
from protocol.faulty import FaultyTransport
from protocol.memory import MemoryBroker, MemoryTransport
from tests.faults.check import Check, Violation
from tests.faults.clock import VirtualClock
from tests.faults.coordinator_party import CoordinatorParty
from tests.faults.device_party import DeviceParty
from tests.faults.frailty import Disk
from tests.faults.liar import LyingParty
from tests.faults.plan import CALM, Plan, weather

ROUNDS = 10
RECOVERY = 600.0  # virtual seconds within which everything works again once nothing breaks any more
STEPS = 60_000  # twenty times what a run needs: who exceeds it spins


@dataclass(frozen=True)
class Verdict:
    """What a run came to. `violation` is empty where every invariant held."""

    seed: int
    violation: str
    rounds: int
    faults: int
    lives: int
    updates: int
    checks: int
    steps: int
    seconds: float  # virtual
    trace: int  # crc32 over all that happened: alike for alike seeds
    counts: dict[str, int]


class Network(FaultyTransport):
    """Loses and reorders messages, but nothing retained on its way to the broker: of QoS 1 a broker has, in order,
    what it acknowledged, and what it did not acknowledge before a cut is published again after it."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry: int | None = None
    ) -> None:
        before = self.faults
        if retain:
            self.faults = replace(before, drop=0.0, reorder=0.0)
        try:
            super().publish(topic, payload, qos=qos, retain=retain, expiry=expiry)
        finally:
            self.faults = before


class World:
    """Everything there is. `said` gets a line for everything that happens when it is given."""

    def __init__(self, seed: int, folder: Path, *, verbose: bool = False) -> None:
        draw = random.Random(f"world {seed}")
        self.seed, self.verbose = seed, verbose
        self.clock, self.counts, self.trace = VirtualClock(), Counter[str](), 0
        self.channels = {"arm": 2, "chest": 1, "leg": 2}
        inputs = tuple(InputSpec(name, channels, 3) for name, channels in self.channels.items())
        self.spec = ModelSpec(inputs, 3, widths=(), fusion=4, seed=seed)
        self.cut = partition(self.spec)
        self.broker = MemoryBroker(
            max_payload=4096 + draw.choice([300, 100_000]), now=lambda: self.clock.now, schedule=self.clock
        )
        self.weather = weather(draw)
        self.honest: set[str] = set()
        self.check = Check(self, initial(self.spec)[0])
        self.limits = draw.choice([None, Limits(hold=20.0)])
        buffered = random.Random(f"pace {seed}")
        self.pace = Pace(expect=3, gather=4.0, patience=2.0, margin=3.0)
        if buffered.random() < 0.3:
            self.pace = replace(self.pace, buffer=buffered.choice([0, 2, 3]), staleness=buffered.choice([1, 2, 5]))
        self._crashes_while_resuming = draw.choice([0.0, 0.3])
        settings = Settings(
            epochs=draw.choice([1.0, 2.0]),
            deadline=draw.choice(["none", "fastest", 0.5, 2.0]),
            joules=draw.choice([0.0, 0.0, 4.0]),
        )
        method = draw.choice([CohortSteps, Relief])

        def strategy() -> Strategy:
            return method(self.spec, settings)

        self.coordinator = CoordinatorParty(
            self, folder / "run", self.spec, strategy, self.pace,
            random.Random(f"coordinator {seed}"), Disk(random.Random(f"disk {seed}")),
        )  # fmt: skip
        self.devices = [self._device(n, folder, draw) for n in range(draw.randint(5, 7))]
        self.liar: LyingParty = self.devices[0]  # type: ignore[assignment]
        self.calm_since: float | None = None
        self.rounds_at_calm = 0
        self.clock(0.0, self.coordinator.start)
        for device in self.devices:
            self.clock(draw.uniform(0.0, 3.0), device.start)
        self.plan = Plan(self, random.Random(f"plan {seed}"))

    def _device(self, n: int, folder: Path, draw: random.Random) -> DeviceParty:
        owned = sorted(draw.sample(list(self.channels), draw.randint(1, 3))) if n else sorted(self.channels)
        name, kind = f"d{n}", DeviceParty if n else LyingParty
        if n:
            self.honest.add(name)
        modalities = {m: self.channels[m] for m in owned}
        windows, chance = draw.randint(16, 64), random.Random(f"{name} {self.seed}")
        return kind(self, name, folder / name, modalities, windows, chance, slow=draw.choice([1.0, 1.0, 3.0]))

    # -- what parties ask ------------------------------------------------------------------------------

    def link(self, name: str, life: int) -> FaultyTransport:
        """A connection of its own for every life."""
        faults = self.weather if self.calm_since is None else CALM
        seed = zlib.crc32(f"{self.seed} {name} {life}".encode())
        return Network(MemoryTransport(self.broker, name), faults, seed=seed, schedule=self.clock)

    def random_crash_while_resuming(self, draw: random.Random) -> bool:
        return self.calm_since is None and draw.random() < self._crashes_while_resuming

    def note(self, text: str) -> None:
        """Something happened."""
        self.count(text.split(":")[-1].strip() if text.startswith("fault") else text)
        line = f"{self.clock.now:10.4f}  {text}"
        self.trace = zlib.crc32(line.encode(), self.trace)
        if self.verbose:
            print(line)

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def calm(self) -> None:
        """Nothing breaks any more: from here on everything must come right by itself."""
        self.calm_since, self.rounds_at_calm = self.clock.now, len(self.check.complete)
        self.weather = CALM
        self.coordinator.disk.full = False
        self.coordinator.fuse.left = None
        for link in (*self.coordinator.links, *(d.link for d in self.devices if d.link)):
            link.faults = CALM
        for device in self.devices:
            device.slow, device.fuse.left = 1.0, None
        self.note("calm")

    # -- running ---------------------------------------------------------------------------------------

    def run(self) -> Verdict:
        """Until ten rounds are committed, the faults are over and a round has seen every honest device again."""
        steps, violation = 0, ""
        try:
            while not self._done():
                steps += 1
                if self.clock.next == float("inf") or steps > STEPS:
                    raise Violation(f"invariant 6: nothing goes on at {self.clock.now:.1f} s after {steps} steps")
                if self.calm_since is not None and self.clock.now > self.calm_since + RECOVERY:
                    raise Violation(
                        f"invariant 6: not recovered {RECOVERY:g} s after the last fault; {self._lacking()}"
                    )
                self.clock.step()
                if not steps % 64:
                    self._mark()
            self._mark()
            if self.coordinator.life is not None:
                self.coordinator.leave()
        except AssertionError as error:
            violation = str(error) or repr(error)
        except Exception as error:  # a party fell over: its shell would have died of this
            last = traceback.extract_tb(error.__traceback__)[-1]
            violation = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {error}"
        finally:
            self._close()
        check = self.check
        return Verdict(
            self.seed, violation, check.round, self.plan.happened, self.coordinator.lives, len(check.counted),
            check.checks, steps, self.clock.now, self.trace, dict(self.counts),
        )  # fmt: skip

    def _mark(self) -> None:
        self.trace = zlib.crc32(f"{self.clock.now} {self.check.round} {len(self.check.sent)}".encode(), self.trace)

    def _done(self) -> bool:
        if self.calm_since is None or self.check.round < ROUNDS:
            return False
        return any(self.check.complete[self.rounds_at_calm :])

    def _lacking(self) -> str:
        lately = sorted(self.check.updates.get(self.check.round, {}))
        asked = sorted(self.check.opened.get(self.check.round, {}))
        return f"in round {self.check.round} were {lately} of {asked}, honest are {sorted(self.honest)}"

    def _close(self) -> None:
        life = self.coordinator.life
        if life is not None:
            life.ledger.close()
            life.history.close()
