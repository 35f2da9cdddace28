"""A run continues from its record with the same bits, even where bad sectors took updates of committed rounds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregation import Contribution
from coordinator.commit import fold_round
from coordinator.events import Keep, Open, UpdateHead
from coordinator.ledger import CannotResume, Ledger, Resumed
from coordinator.strategies.base import Settings
from coordinator.strategies.momentum import ReliefMomentum
from coordinator.strategies.relief import CohortSteps
from models.partition import Vector, initial, partition
from protocol.messages import Assignment, BlockWork, Tensor, Update
from tests.worlds import spec

SPEC = spec(2)


def strategy() -> CohortSteps:
    return CohortSteps(SPEC, Settings())


def update_of(device: str, round: int) -> Update:
    rng = np.random.default_rng([ord(device), round])
    blocks = {}
    for name in partition(SPEC).blocks:
        vector = rng.standard_normal(partition(SPEC).size(name)).astype("<f4")
        blocks[name] = BlockWork(version=round - 1, steps=2, delta=Tensor.of(vector))
    return Update(id=f"{device}{round}", device=device, boot="b", round=round, epoch=1, assignment=f"1.{round}",
                  blocks=blocks, samples=10)  # fmt: skip


def committed(folder: Path, rounds: int) -> dict[str, Vector]:
    """The blocks after so many rounds of three devices, all in the journal of `folder`."""
    ledger, method = Ledger(folder, SPEC), strategy()
    blocks = initial(SPEC)[0]
    versions = dict.fromkeys(blocks, 0)
    ledger.begin(1)
    for round in range(1, rounds + 1):
        ledger.open(Open(round, 1, {}, {}))
        heads = []
        for device in "abc":
            update = update_of(device, round)
            heads.append(UpdateHead.of(update))
            ledger.update(heads[-1], update, update.round)
        ledger.journal.sync()
        done = fold_round(method, blocks, versions, heads, ledger.delta)
        ledger.commit(round, 1, [head.id for head in heads], done)
        ledger.journal.sync()
        blocks, versions = {**blocks, **done.blocks}, {**versions, **done.versions}
        ledger.forget([head.id for head in heads])
    ledger.close()
    return blocks


def damage(folder: Path, kind: str, round: int) -> None:
    """Flip a bit in the body of the first record of this kind and round."""
    ledger = Ledger(folder, SPEC)
    for record in ledger.journal.records():
        if record.kind == kind and record.header.get("head", record.header).get("round") == round:
            place = ledger.journal._index[record.position]
            break
    path, at = place.segment.path, place.offset + place.size - 5
    ledger.close()
    raw = bytearray(path.read_bytes())
    raw[at] ^= 16
    path.write_bytes(raw)


def same(a: dict[str, Vector], b: dict[str, Vector]) -> bool:
    return all(a[name].tobytes() == b[name].tobytes() for name in b)


def test_an_update_that_a_crash_left_without_its_rounds_opening_counts_for_nothing(tmp_path: Path) -> None:
    """Both can be of one batch where rounds are buffered, and a torn batch may lose its beginning alone."""
    ledger, update = Ledger(tmp_path, SPEC), update_of("a", 1)
    ledger.begin(1)
    ledger.update(UpdateHead.of(update), update, 1)
    ledger.journal.sync()
    at = ledger.resume(strategy(), initial(SPEC)[0])
    assert (at.opened, at.stored) == (False, {})
    ledger.open(Open(1, 1, {}, {}))
    ledger.journal.sync()
    at = ledger.resume(strategy(), initial(SPEC)[0])
    assert (at.opened, at.stored) == (True, {})
    ledger.update(UpdateHead.of(update), update, 1)
    ledger.journal.sync()
    assert list(ledger.resume(strategy(), initial(SPEC)[0]).stored) == ["a"]
    ledger.close()


def test_a_run_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    blocks = committed(tmp_path, 4)
    ledger = Ledger(tmp_path, SPEC)
    at = ledger.resume(strategy(), initial(SPEC)[0])
    assert (at.round, at.epoch, ledger.mended) == (5, 1, [])
    assert same(at.blocks, blocks) and set(at.versions.values()) == {4}
    ledger.close()


def test_a_lost_update_of_a_committed_round_costs_nothing_and_is_said(tmp_path: Path) -> None:
    blocks = committed(tmp_path, 4)
    damage(tmp_path, "update", 2)
    ledger = Ledger(tmp_path, SPEC)
    at = ledger.resume(strategy(), initial(SPEC)[0])
    assert same(at.blocks, blocks) and at.round == 5
    assert ledger.mended == [2] and "damaged and skipped" in at.said and "[2] taken from their commits" in at.said
    ledger.close()


def test_a_lost_commit_in_the_middle_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    committed(tmp_path, 4)
    damage(tmp_path, "commit", 2)
    ledger = Ledger(tmp_path, SPEC)
    with pytest.raises(CannotResume, match="round 2 is missing"):
        ledger.resume(strategy(), initial(SPEC)[0])
    ledger.close()


def test_a_round_of_a_thousand_devices_is_resumed_in_less_than_two_seconds(tmp_path: Path) -> None:
    """1,000 updates of 50 KB: what `relief coordinator run` does after a kill before it says its first word."""
    wide = spec(2, widths=(16, 32), fusion=96)
    cut = partition(wide)
    ledger = Ledger(tmp_path, wide)
    ledger.begin(1)
    versions, steps = dict.fromkeys(cut.blocks, 0), dict.fromkeys(cut.blocks, 2)
    names = [f"device-{n:04d}" for n in range(1000)]
    plan = {
        name: Assignment(id="1.1", round=1, epoch=1, steps=steps, versions=versions, deadline=60.0) for name in names
    }
    ledger.open(Open(1, 1, plan, {}))
    size = 0
    for name in names:
        work = {b: BlockWork(version=0, steps=2, delta=Tensor.of(np.ones(cut.size(b), "<f4"))) for b in cut.blocks}
        update = Update(
            id=f"u-{name}", device=name, boot="b", round=1, epoch=1, assignment="1.1", blocks=work, samples=9
        )
        size = sum(len(w.delta.data) for w in work.values())
        ledger.update(UpdateHead.of(update), update, update.round)
    ledger.journal.sync()
    ledger.close()
    began = time.perf_counter()
    again = Ledger(tmp_path, wide)
    at = again.resume(CohortSteps(wide, Settings()), initial(wide)[0])
    took = time.perf_counter() - began
    print(f"1,000 updates of {size:,} bytes resumed in {took:.2f} s")
    assert len(at.stored) == 1000 and at.round == 1 and size > 40_000
    assert took < 2.0
    again.close()


def test_what_devices_said_of_replayed_rounds_is_heard_again(tmp_path: Path) -> None:
    committed(tmp_path, 3)
    ledger = Ledger(tmp_path, SPEC)
    method = CohortSteps(SPEC, Settings(deadline="learned"))
    ledger.resume(method, initial(SPEC)[0])
    assert method.pacing is not None and len(method.pacing.stay) == 3
    ledger.close()


def test_the_last_wish_of_operators_stands_after_a_restart_wherever_it_was_journalled(tmp_path: Path) -> None:
    """The second came while round 4 was folded, so it lies behind its commit; the third is in the checkpoint alone."""
    committed(tmp_path, 4)
    wishes = [Keep(4, True, {"a": "loose"}, "op", "1"), Keep(4, False, {"a": "loose", "b": "wet"}, "op", "2")]
    ledger = Ledger(tmp_path, SPEC)
    for wish in wishes:
        ledger.wish(wish)
    ledger.journal.sync()
    at = ledger.resume(strategy(), initial(SPEC)[0])
    assert (at.round, at.paused, at.held) == (5, False, {"a": "loose", "b": "wet"})
    assert at.said.endswith("held by an operator: a, b")
    at.paused, at.held = True, {}
    assert ledger.checkpoint(at, strategy(), {}, force=True) is not None
    assert "wish" in [record.kind for record in ledger.journal.records()], "as the checkpoint before needs it"
    again = ledger.resume(strategy(), initial(SPEC)[0])
    assert (again.paused, again.held) == (True, {}) and again.said.endswith("paused by an operator")
    ledger.close()


def test_a_checkpoint_that_is_passed_over_is_said(tmp_path: Path) -> None:
    committed(tmp_path, 4)
    ledger = Ledger(tmp_path, SPEC)
    at = ledger.resume(strategy(), initial(SPEC)[0])
    for at.round in (5, 6):
        newest = ledger.checkpoint(at, strategy(), {}, force=True)
    assert newest is not None
    (newest / "model.safetensors").write_bytes(b"rubbish")
    again = ledger.resume(strategy(), initial(SPEC)[0])
    assert again.round == 5 and f"passed over: checkpoint {newest}: model.safetensors" in again.said
    ledger.close()


def test_a_checkpoint_of_the_same_round_again_drops_no_more_of_the_journal(tmp_path: Path) -> None:
    """As when a run ends right after a checkpoint was due: what the one before it needs stays."""
    committed(tmp_path, 4)
    ledger = Ledger(tmp_path, SPEC)
    at = ledger.resume(strategy(), initial(SPEC)[0])
    assert ledger.checkpoint(at, strategy(), {}, force=True) is not None
    kept = [record.kind for record in ledger.journal.records()]
    assert "commit" in kept
    assert ledger.checkpoint(at, strategy(), {}, force=True) is not None
    assert [record.kind for record in ledger.journal.records()] == kept
    ledger.close()


def test_momentum_is_in_the_checkpoint(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, SPEC)
    blocks = initial(SPEC)[0]
    method = ReliefMomentum(SPEC, Settings())
    heads = [UpdateHead.of(update_of("a", 1))]
    vectors = {name: np.ones(v.size, np.float32) for name, v in blocks.items()}
    done = fold_round(method, blocks, dict.fromkeys(blocks, 0), heads, lambda head, block: vectors[block])
    at = Resumed(True, 1, 2, done.blocks, done.versions)
    assert ledger.checkpoint(at, method, initial(SPEC)[1], force=True)
    again = ReliefMomentum(SPEC, Settings())
    ledger.resume(again, blocks)
    base = np.zeros(vectors["shared"].size, np.float32)
    folded = again.fold("shared", base.size, [Contribution("a", 1, 1.0, base)], 1)
    assert folded is not None
    np.testing.assert_allclose(again.apply("shared", base, folded), 0.8 * 0.8)
    ledger.close()


def test_how_many_samples_stand_behind_a_normalisation_survives_a_restart(tmp_path: Path) -> None:
    blocks = initial(SPEC)[0]
    ledger = Ledger(tmp_path, SPEC)
    ledger.begin(1)
    ledger.open(Open(1, 1, {}, {"torso": ([0.0] * 3, [1.0] * 3)}, {"torso": 1}, counts={"torso": 40}))
    ledger.journal.sync()
    ledger.close()
    again = Ledger(tmp_path, SPEC)
    at = again.resume(strategy(), blocks)
    assert at.scaled == {"torso": 40}
    again.checkpoint(at, strategy(), {}, force=True)
    again.close()
    last = Ledger(tmp_path, SPEC)
    assert last.resume(strategy(), blocks).scaled == {"torso": 40}
    last.close()
