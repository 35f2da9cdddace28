"""Buffered rounds: they close at K updates, late ones count less, at most once, within the bound, whatever restarts."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from broker_config.launcher import Broker
from coordinator.commit import fold_round
from coordinator.config import CoordinatorConfig
from coordinator.events import (
    Acknowledge,
    Declined,
    Fold,
    Folded,
    Open,
    Send,
    StatusArrived,
    Store,
    Stored,
    Tick,
    UpdateArrived,
    UpdateHead,
)
from coordinator.journal import Journal
from coordinator.ledger import Ledger
from coordinator.robust import Robust, Rule
from coordinator.rounds import Pace, Phase
from coordinator.service import Coordinator
from coordinator.strategies import Settings, strategy
from device_runtime.config import DeviceConfig
from device_runtime.config import Settings as DeviceSettings
from device_runtime.events import StartTraining
from device_runtime.runtime import Runtime
from device_runtime.sensing import Labelled
from device_runtime.worker import Worker
from models import SHARED, initial
from models.partition import Vector
from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport
from tests.test_coordinator_rounds import Table, birth, kinds
from tests.test_system_memory import until
from tests.worlds import FixedWindows, spec, windows


def table(*devices: str, buffer: int = 2, staleness: int = 2) -> Table:
    t = Table(buffer=buffer, staleness=staleness, expect=len(devices))
    for device in devices:
        t.born(device)
    return t


def round_of(t: Table, *answering: str) -> list[object]:
    """These answer, the round closes and the next begins; the actions of that."""
    for device in answering:
        t.answers(t.head(device))
    assert t.core.phase is Phase.FOLDING
    return list(t.feed(Folded(t.core.round, dict.fromkeys(t.core.versions, t.core.round), {})))


def test_a_round_closes_at_k_updates_and_who_has_not_answered_trains_on() -> None:
    t = table("a", "b", "c")
    after = round_of(t, "a", "b")
    assert {a.device for a in kinds(after, Send)} == {"a", "b"}
    (opened,) = kinds(after, Open)
    assert set(opened.assignments) == {"a", "b"} and set(opened.late) == {"c"}
    assert t.core.round == 2 and t.core.late.assignments["c"].round == 1


def test_a_late_update_is_folded_in_once_and_its_repeat_is_not() -> None:
    t = table("a", "b", "c")
    late = t.head("c")
    round_of(t, "a", "b")
    stored = t.feed(UpdateArrived(late))
    assert kinds(stored, Store) == [Store(late, 2)]
    t.feed(Stored((late.id,)))
    t.answers(t.head("a"))
    assert t.core.phase is Phase.FOLDING and set(t.core.stored) == {"a", "c"}
    t.feed(Folded(2, {}, {}))
    assert kinds(t.feed(UpdateArrived(late)), Acknowledge) == [Acknowledge("c", late.id, True)]  # a repeat, counted
    round_of(t, "a", "c")
    (answer,) = kinds(t.feed(UpdateArrived(late)), Acknowledge)
    assert not answer.accepted and answer.reason.startswith(("stale", "not assigned"))


def test_a_round_waits_for_those_who_would_be_too_late_for_the_next_but_not_beyond_its_deadline() -> None:
    t = table("a", "b", "c", staleness=1)
    late = t.head("c")
    round_of(t, "a", "b")
    for device in ("a", "b"):
        t.answers(t.head(device))
    assert t.core.phase is Phase.TRAINING  # K are in; closing now would make c's work worthless
    t.now = t.core.deadline
    assert kinds(t.feed(Tick()), Fold)
    t.feed(Folded(2, {}, {}))
    (answer,) = kinds(t.feed(UpdateArrived(late)), Acknowledge)
    assert not answer.accepted and answer.reason == "stale: made for round 1, training round 3"
    assert "c" in t.core.assignments  # and c is asked anew


def test_who_declines_or_begins_another_life_is_asked_anew() -> None:
    t = table("a", "b", "c", "d")
    first = t.head("d")
    round_of(t, "a", "b")
    assert set(t.core.late.busy) == {"c", "d"}
    t.feed(Declined("c", t.core.late.assignments["c"].id, "too hot"))
    t.feed(StatusArrived("d", birth(boot="b2")))
    round_of(t, "a", "b")
    assert set(t.core.assignments) == {"a", "b", "c", "d"}
    assert kinds(t.answers(first), Acknowledge) == [
        Acknowledge("d", first.id, True)
    ]  # from the outbox of its last life


def test_who_lives_anew_is_asked_once_and_then_trains_on_like_everybody() -> None:
    """Asked anew in every round, a device that is slower than the rounds would never come to an end."""
    t = table("a", "b", "c", staleness=3)
    round_of(t, "a", "b")
    t.feed(StatusArrived("c", birth(boot="b2")))
    after = round_of(t, "a", "b")
    assert {a.device for a in kinds(after, Send)} == {"a", "b", "c"}  # its first life's training is lost
    after = round_of(t, "a", "b")
    assert {a.device for a in kinds(after, Send)} == {"a", "b"}
    assert t.core.late.assignments["c"].round == 3


def test_between_rounds_a_late_update_is_asked_to_come_again_and_that_is_no_refusal() -> None:
    t = table("a", "b", "c")
    for device in ("a", "b"):
        t.answers(t.head(device))
    (answer,) = kinds(t.feed(UpdateArrived(t.head("c"))), Acknowledge)
    assert answer.again and not answer.accepted


def test_a_round_goes_on_with_nobody_but_those_who_train_on() -> None:
    t = table("a", "b", "c", buffer=1)
    late = {device: t.head(device) for device in ("b", "c")}
    t.answers(t.head("a"))
    t.feed(Folded(1, {}, {}))
    t.feed(StatusArrived("a", birth(online=False)))
    t.answers(late["b"])
    assert t.core.phase is Phase.FOLDING
    t.feed(StatusArrived("b", birth(online=False)))
    opened = t.feed(Folded(2, {}, {}))
    assert not kinds(opened, Send) and t.core.phase is Phase.TRAINING
    assert kinds(t.answers(late["c"]), Fold)


def test_a_buffer_without_staleness_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="needs a staleness of at least 1"):
        CoordinatorConfig(buffer=3)
    assert CoordinatorConfig(buffer=3, staleness=2).pace() == Pace(settle=2.0, buffer=3, staleness=2)


@pytest.mark.parametrize("rule", [None, *Rule])
def test_a_change_that_began_s_versions_ago_counts_with_one_over_the_root_of_1_plus_s(rule: Rule | None) -> None:
    of = spec(2)
    blocks = {b: np.zeros_like(v) for b, v in initial(of)[0].items()}
    robust = Robust(rule, share=0.2) if rule else None
    method = strategy("cohort-steps")(of, Settings(robust=robust))

    def delta(head: UpdateHead, block: str) -> Vector:
        return np.ones_like(blocks[block])

    def folded(version: int) -> dict[str, Vector]:
        heads = [UpdateHead(f"u{n}", f"d{n}", "b", 1, 1, "1.1", {"torso": (version, 4)}, 10) for n in range(5)]
        return fold_round(method, blocks, dict.fromkeys(blocks, 8), heads, delta).blocks

    now, before = folded(8)["torso"], folded(5)["torso"]
    assert np.allclose(before, now / 2, rtol=1e-5) and now.any()
    assert set(folded(5)) == {"torso"}


class Gated(Worker):
    """A trainer that begins when the gate is open."""

    gate = threading.Event()

    def train(self, start: StartTraining, windows: Labelled) -> None:
        def waited() -> None:
            self.gate.wait(60)

        self._jobs.put(waited)
        super().train(start, windows)


@pytest.mark.timeout(120)
def test_a_slow_device_is_folded_in_late_over_a_real_broker_and_replayed_with_the_same_bits(
    broker: Broker, fleet: str, tmp_path: Path
) -> None:
    of, owned = spec(3), {"quick-1": ("torso", "arm"), "quick-2": ("arm", "leg"), "slow": ("torso", "leg")}
    Gated.gate.clear()
    method = strategy("relief")(of, Settings(epochs=1))
    run = Coordinator(
        fleet=fleet,
        spec=of,
        strategy=method,
        pace=Pace(expect=3, gather=60, margin=60, rounds=8, buffer=2, staleness=4),
        folder=tmp_path / "run",
        control=MqttTransport(BrokerConfig(port=broker.port), f"{fleet}-control"),
        bulk=MqttTransport(BrokerConfig(port=broker.port), f"{fleet}-bulk"),
    )
    runtimes = []
    for n, (name, modalities) in enumerate(owned.items()):
        config = BrokerConfig(port=broker.port)
        device = DeviceConfig(id=name, modalities=modalities, state=tmp_path / "state", telemetry=0)
        sensing = FixedWindows(*windows(of, 24 + 8 * n, seed=n, owned=modalities))
        link = MqttTransport(config, f"{fleet}-{name}")
        settings = DeviceSettings(fleet=fleet, broker=config, device=device)
        runtimes.append(Runtime(settings, link, sensing, Gated if name == "slow" else Worker))
    stop = threading.Event()
    threads = [threading.Thread(target=r.run, daemon=True) for r in runtimes]
    threads.append(threading.Thread(target=run.run, args=(stop,), daemon=True))
    for thread in threads:
        thread.start()
    try:
        until(lambda: run.core.round >= 3)
        assert run.core.late.assignments["slow"].round == 1
        Gated.gate.set()
        until(lambda: run.core.finished)
    finally:
        Gated.gate.set()
        stop.set()
        run.wake()
        for r in runtimes:
            r.stop()
        for thread in threads:
            thread.join(20)
    journal = Journal.open(tmp_path / "run" / "journal")
    updates = [r.header for r in journal.records() if r.kind == "update" and r.header["head"]["device"] == "slow"]
    named = [id for r in journal.records() if r.kind == "commit" for id in r.header["updates"]]
    journal.close()
    first = updates[0]
    assert first["head"]["round"] == 1 and 3 <= first["into"] <= 5
    assert named.count(first["head"]["id"]) == 1 and len(set(named)) == len(named)
    for left in (tmp_path / "run" / "checkpoints").iterdir():
        left.rename(tmp_path / left.name)  # so that every round is folded again
    ledger = Ledger(tmp_path / "run", of)
    at = ledger.resume(strategy("relief")(of, Settings(epochs=1)), initial(of)[0])
    ledger.close()
    assert ledger.mended == [] and at.round == run.core.round == 9
    assert all(at.blocks[b].tobytes() == run.blocks[b].tobytes() for b in (*of.names, SHARED))
