"""A bad device's updates are refused at the edge, and whoever is refused again and again is left out for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.commit import fold_round
from coordinator.defence import WARM_UP, Defence
from coordinator.events import UpdateHead
from coordinator.quarantine import Limits
from coordinator.robust import Robust, Rule
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies.base import Settings
from coordinator.strategies.relief import CohortSteps
from models.partition import Vector, initial, partition
from protocol.chunks import split
from protocol.memory import MemoryBroker, MemoryTransport
from protocol.messages import BlockWork, Request, Status, Tensor, Update, update_id
from protocol.transport import Received
from tests.worlds import spec

SPEC = spec(2)


def an_update(device: str, length: float, *, steps: int = 1, assignment: str = "1.1", bad: bool = False) -> Update:
    size = partition(SPEC).size("torso")
    vector = np.full(size, length * steps / np.sqrt(size), "<f4")
    if bad:
        vector[0] = np.nan
    work = BlockWork(version=0, steps=steps, delta=Tensor.of(vector))
    return Update(id=update_id(device, "b", assignment), device=device, boot="b", round=1, epoch=1,
                  assignment=assignment, blocks={"torso": work}, samples=10)  # fmt: skip


def committed(defence: Defence, lengths: list[float], rounds: int = 1) -> None:
    for _ in range(rounds):
        for n, length in enumerate(lengths):
            assert defence.judge(an_update(f"d{n}", length, steps=1 + n)) == ""
        defence.committed()


def test_an_honest_device_is_not_refused_because_the_others_have_converged() -> None:
    """Most steps shrink to nothing as training ends; a hard batch is as long as it was in the beginning."""
    defence = Defence(bound=10.0)
    committed(defence, [1.0, 2.0, 3.0], WARM_UP)
    committed(defence, [0.01, 0.02, 0.03], 50)
    assert defence.judge(an_update("x", 2.0)) == ""
    assert defence.judge(an_update("x", 200.0)) != ""
    later = Defence(bound=10.0)
    later.restore(defence.lengths)
    committed(later, [0.01, 0.02, 0.03], WARM_UP)
    assert later.judge(an_update("x", 2.0)) == ""


def test_nothing_is_kept_of_a_bound_that_has_not_begun() -> None:
    defence = Defence(bound=10.0)
    committed(defence, [1.0, 2.0, 3.0], WARM_UP - 1)
    assert defence.lengths == {}


def test_lengths_are_bounded_by_the_largest_median_so_far_per_step() -> None:
    defence = Defence(bound=10.0)
    committed(defence, [1.0, 2.0, 3.0], WARM_UP)
    assert defence.medians["torso"] == pytest.approx(2.0, rel=1e-5)
    assert defence.judge(an_update("x", 19.0, steps=7)) == ""
    reason = defence.judge(an_update("x", 21.0, steps=7))
    assert reason.startswith("block torso: norm 21 a step") and "median was never above 2" in reason


def test_first_rounds_are_free_because_lora_begins_near_zero() -> None:
    defence = Defence(bound=10.0)
    for round in range(WARM_UP):
        committed(defence, [30.0**round] * 3)


def test_a_cohort_that_moves_on_as_a_whole_is_let_in_a_round_later_and_a_minority_never() -> None:
    defence = Defence(bound=2.0)
    committed(defence, [1.0] * 5, WARM_UP)
    for _ in range(3):
        assert [bool(defence.judge(an_update(f"d{n}", 9.0 if n < 2 else 1.0))) for n in range(5)] == [True] * 2 + [
            False
        ] * 3
        defence.committed()
    assert all(defence.judge(an_update(f"d{n}", 9.0)) for n in range(5))
    defence.committed()
    assert not any(defence.judge(an_update(f"d{n}", 9.0)) for n in range(5))


def test_two_devices_make_no_median_and_nobody_who_was_not_asked_has_a_say() -> None:
    defence = Defence(bound=2.0)
    committed(defence, [1.0, 1.0])
    assert defence.medians == {}
    for n in range(5):
        defence.judge(an_update(f"x{n}", 1e6), asked=False)
    committed(defence, [1.0, 1.0, 1.0])
    assert defence.medians["torso"] == pytest.approx(1.0, rel=1e-5)


def test_what_happens_to_honest_devices_leads_nowhere() -> None:
    defence = Defence(limits=Limits(strikes=1))
    for reason in ("stale: made for round 1", "duplicate: round 1 has one", "not assigned: '1.1'", "quarantined: so"):
        assert defence.refused("d", reason, 0.0) is None
    assert defence.refused("d", "block torso: not all values are finite", 0.0) is not None


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[tuple[Coordinator, Callable[..., None]]]:
    broker, now = MemoryBroker(), [0.0]
    life = Coordinator(
        fleet="f",
        spec=SPEC,
        strategy=CohortSteps(SPEC, Settings()),
        pace=Pace(expect=2, gather=9.0, settle=0.0),
        folder=tmp_path,
        control=MemoryTransport(broker, "control"),
        bulk=MemoryTransport(broker, "bulk"),
        defence=Defence(limits=Limits(strikes=3, hold=60.0)),
    )
    life._now = lambda: now[0]  # type: ignore[method-assign]
    life._resume()

    def hears(device: str, leaf: str, payload: bytes, at: float) -> None:
        now[0] = at
        life._inbox.put(("control", Received(life.topics.device(device, leaf), payload)))
        life._step()

    yield life, hears
    life.ledger.close()
    life.history.close()


def test_three_bad_updates_lead_into_quarantine_with_a_reason_and_time_leads_out(
    coordinator: tuple[Coordinator, Callable[..., None]],
) -> None:
    life, hears = coordinator
    both_are_born(hears)
    assert set(life.core.assignments) == {"bad", "good"}
    for n in range(3):
        assert "bad" not in life.core.registry.quarantined
        (chunk,) = split("u", an_update("bad", 1.0, assignment=f"1.{n}", bad=True).encode())
        hears("bad", "update", chunk.encode(), 1.0 + n)
    assert "3 refusals" in life.core.registry.quarantined["bad"].reason
    assert life.core.registry.ready() == ["good"]
    assert life._due() <= 63.0
    life._now = lambda: 63.5  # type: ignore[method-assign]
    life._inbox.put(None)
    life._step()
    assert life.core.registry.ready() == ["bad", "good"]


def test_an_operators_hold_outlasts_the_rules_and_his_release_wipes_the_slate(
    coordinator: tuple[Coordinator, Callable[..., None]],
) -> None:
    life, hears = coordinator
    birth = Status(online=True, boot="b", modalities={"torso": 3}, windows=40, can_train=True)
    hears("bad", "status", birth.encode(), 0.0)

    def asks(kind: str, at: float) -> None:
        args = {"device": "bad", "reason": "sensor is loose"}
        life._now = lambda: at  # type: ignore[method-assign]
        request = Request(id=kind, operator="op", kind=kind, args=args)  # type: ignore[arg-type]
        life._inbox.put(("control", Received(life.topics.coordinator("request"), request.encode())))
        life._step()

    asks("quarantine", 1.0)
    for _ in range(3):
        life.refusals.refuse("bad", "update refused: not msgpack")
    life._now = lambda: 1e6  # type: ignore[method-assign]
    life._inbox.put(None)
    life._step()
    assert life.core.registry.held == {"bad": "sensor is loose"}
    asks("release", 1e6)
    assert life.core.registry.quarantined == {}
    for n in range(3):
        assert ("bad" in life.core.registry.quarantined) is False, f"after {n} refusals"
        life.refusals.refuse("bad", "update refused: not msgpack")
    asks("release", 1e6)
    life.refusals.refuse("bad", "update refused: not msgpack")
    assert life.core.registry.quarantined == {}, "it is not on probation"


def both_are_born(hears: Callable[..., None]) -> None:
    birth = Status(online=True, boot="b", modalities={"torso": 3}, windows=40, can_train=True)
    for device in ("bad", "good"):
        hears(device, "status", birth.encode(), 0.0)


def test_a_round_closes_at_once_when_its_last_device_is_held_for_what_it_sent(
    coordinator: tuple[Coordinator, Callable[..., None]],
) -> None:
    """The third refusal is found while it is answered: what the core wants then is not left until the next event."""
    life, hears = coordinator
    both_are_born(hears)
    a = life.core.assignments["good"]
    for device, steps in (("good", 1), ("bad", 10**6), ("bad", 10**6), ("bad", 10**6)):
        update = an_update(device, 1.0, steps=steps, assignment=a.id)
        work = {"torso": update.blocks["torso"].model_copy(update={"version": a.versions["torso"]})}
        mine = update.model_copy(update={"epoch": a.epoch, "round": a.round, "blocks": work})
        (chunk,) = split("u", mine.encode())
        hears(device, "update", chunk.encode(), 1.0)
    assert "bad" in life.core.registry.quarantined
    assert life.core.round == 2 and not life._actions


@pytest.mark.parametrize("rule", list(Rule))
def test_a_round_is_folded_by_the_robust_rule_that_was_chosen(rule: Rule) -> None:
    blocks, _ = initial(SPEC)
    rng = np.random.default_rng(0)
    truth = {name: 0.1 * rng.standard_normal(v.size) for name, v in blocks.items()}
    heads = [
        UpdateHead(f"u{n}", f"d{n}", "b", 1, 1, "1.1", dict.fromkeys(blocks, (0, 2)), samples=10) for n in range(10)
    ]

    def delta(head: UpdateHead, block: str) -> Vector:
        hostile = int(head.device[1:]) < 2
        noise = np.random.default_rng([int(head.device[1:]), len(block)]).standard_normal(truth[block].size)
        return (-100 * truth[block] if hostile else truth[block] + 0.01 * noise).astype(np.float32)

    found = {}
    for robust in (None, Robust(rule, share=0.2, memory=4096)):
        strategy = CohortSteps(SPEC, Settings(robust=robust))
        done = fold_round(strategy, blocks, dict.fromkeys(blocks, 0), heads, delta)
        error = [np.linalg.norm(done.blocks[b] - blocks[b] - truth[b]) / np.linalg.norm(truth[b]) for b in blocks]
        found[robust] = max(error)
        assert set(done.versions.values()) == {1}
    plain, withstood = found.values()
    assert plain > 10 and withstood < 0.5


def test_a_device_that_sends_anothers_update_neither_takes_it_away_nor_ends_the_coordinator(
    coordinator: tuple[Coordinator, Callable[..., None]],
) -> None:
    """Both arrive before either is stored; the thief's is refused and the owner's is kept."""
    life, hears = coordinator
    both_are_born(hears)
    a = life.core.assignments["good"]
    plain = an_update("good", 1.0, assignment=a.id)
    mine = plain.model_copy(update={"epoch": a.epoch, "round": a.round})
    (chunk,) = split("u", mine.encode())
    for device in ("good", "bad"):
        topic = life.topics.device(device, "update")
        life._inbox.put(("bulk", Received(topic, chunk.encode())))
    life._step()
    assert {d: head.id for d, head in life.core.stored.items()} == {"good": mine.id}
    assert life.refusals.counts["device"] == 1


def test_an_update_whose_content_changes_while_it_waits_for_the_disk_counts_as_it_came_first(
    coordinator: tuple[Coordinator, Callable[..., None]],
) -> None:
    """The same id three times in one batch: whole, with other blocks, and broken. None of it ends the coordinator."""
    life, hears = coordinator
    both_are_born(hears)
    a = life.core.assignments["bad"]
    first = an_update("bad", 1.0, assignment=a.id).model_copy(update={"epoch": a.epoch, "round": a.round})
    fewer = first.model_copy(update={"blocks": {}})
    broken = an_update("bad", 1.0, assignment=a.id, bad=True)
    for n, update in enumerate((first, fewer, broken)):
        (chunk,) = split(f"u{n}", update.encode())
        life._inbox.put(("bulk", Received(life.topics.device("bad", "update"), chunk.encode())))
    life._step()
    stored = life.core.stored["bad"]
    assert set(stored.blocks) == set(first.blocks)
    assert all(life.ledger.delta(stored, block).size == life.inlet.cut.size(block) for block in stored.blocks)
