"""FLISM: contrast, divergence from the base and weights by certainty, against small cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from coordinator.aggregation import Contribution
from coordinator.commit import fold_round
from coordinator.events import UpdateHead
from coordinator.strategies import Settings
from coordinator.strategies.flism import FLISM
from coordinator.work import Member, speed_from_flops
from models.contrast import supervised_contrast
from models.local import Local, hidden, last_epoch
from models.spec import SHARED, InputSpec, Mode, ModelSpec
from protocol.messages import Update, decode
from tests.test_lab_simulate import run, tiny

SPEC = ModelSpec((InputSpec("chest", 2, 24), InputSpec("ecg", 1, 24)), 3, widths=(4, 8), bins=2, fusion=8)
SETTINGS = Settings(epochs=2, local=Local(batch=10))


def test_the_contrast_of_two_windows_by_hand() -> None:
    # Rows e1, e2 and their views e1, e1: of different classes, so each row's one positive is its own other view.
    first, second = torch.eye(2).double(), torch.tensor([[1.0, 0], [1, 0]]).double()
    e = np.exp
    rows = [
        log(e(1) / (e(0) + e(1) + e(1))),  # e1 of class 0: itself left out, likeness 0 to e2, 1 to both views
        log(e(0) / (e(0) + e(0) + e(0))),  # e2 of class 1: its view is as unlike as everything else
        log(e(1) / (e(1) + e(0) + e(1))),
        log(e(0) / (e(1) + e(0) + e(1))),
    ]
    loss = supervised_contrast(first, 3 * second, torch.tensor([0, 1]), 1.0)  # lengths do not matter
    assert float(loss) == pytest.approx(-np.mean(rows))
    same = supervised_contrast(first, second, torch.tensor([0, 0]), 1.0)
    assert float(same) > 0
    both = supervised_contrast(torch.stack([first, first]), torch.stack([second, second]), torch.zeros(2, 2), 1.0)
    torch.testing.assert_close(both, same.repeat(2))


def test_a_second_view_hides_some_but_never_all_and_is_drawn_once_a_round() -> None:
    local, owned = Local(contrast=1.0), ("arm", "chest", "leg")
    seen = [hidden(local, "d", round, owned) for round in range(60)]
    assert {len(view) for view in seen} == {1, 2}
    assert set().union(*seen) == set(owned)
    assert hidden(local, "d", 7, owned) == seen[7]
    assert hidden(local, "d", 1, ("arm",)) == hidden(Local(), "d", 1, owned) == ()


def test_entropy_is_measured_in_the_last_epoch() -> None:
    assert last_epoch(Local(batch=10), 25, 6) == 3
    assert last_epoch(Local(batch=10), 100, 6) == 0


def test_a_step_is_two_passes_and_a_look_at_the_bases_prediction() -> None:
    local = FLISM(SPEC, SETTINGS).local()
    assert (local.contrast, local.temperature, local.distil, local.zero_fill) == (1.0, 0.1, 1.0, True)
    assert (local.passes(2), local.looks(2)) == (2, 3)
    assert (local.passes(1), local.looks(1)) == (1, 2)
    assert (Local().passes(2), Local().looks(2)) == (1, 1)


@pytest.mark.parametrize("silent", [0.0, float("nan"), float("inf")])  # not told, or of a training that diverged
def test_who_is_twice_as_sure_counts_twice(silent: float) -> None:
    method = FLISM(SPEC, SETTINGS)
    heads = [
        UpdateHead("1", "a", "x", 1, 1, "1", {"chest": (0, 4)}, 90, entropy=0.4),
        UpdateHead("2", "b", "x", 1, 1, "1", {"chest": (0, 4)}, 10, entropy=0.2),
        UpdateHead("3", "c", "x", 1, 1, "1", {"chest": (0, 4)}, 10, entropy=silent),  # counts as one that guesses
    ]
    sent = {"a": 3.0, "b": 6.0, "c": 0.0}
    blocks = {"chest": np.zeros(2, np.float32)}
    done = fold_round(method, blocks, {"chest": 0}, heads, lambda head, _: np.full(2, sent[head.device]))
    weights = np.array([1 / 0.4, 1 / 0.2, 1 / log(3)])
    np.testing.assert_allclose(done.blocks["chest"], weights @ [3.0, 6.0, 0.0] / weights.sum(), rtol=1e-6)
    folded = method.fold("chest", 2, [Contribution("a", 90, 4.0, np.ones(2))], 90)
    assert folded is not None and folded.samples == 90


def test_all_passes_are_charged_in_the_plan_and_on_the_clock() -> None:
    place = tiny()
    made = run(place, "flism", rounds=1)
    joules = 0.0
    for device in place.devices:
        passes = 2 if len(device.owned) > 1 else 1
        costs = made.costs.values()
        step = sum(c.forward * (passes + 1) + c.backward * passes for c in costs)
        joules += 40 * step / device.flops * device.watts  # 5 steps of 8 windows
    assert made.points[0].joules == pytest.approx(joules)
    method, fedavg = made.strategy, run(place, "fedavg", rounds=1).strategy
    one = Member("d", ("chest", "ecg"), 20, speed_from_flops(place.spec, 1e6))
    assert method.full_seconds(one) == pytest.approx(
        40 / 1e6 * sum(c.forward * 3 + c.backward * 2 for c in made.costs.values())
    )
    assert method.full_seconds(one) > 2 * fedavg.full_seconds(one)


@pytest.mark.parametrize("mode", list(Mode))
def test_flism_learns(mode: Mode) -> None:
    made = run(tiny(mode), "flism", rounds=12, settings=Settings(epochs=2, local=Local(batch=8, lr=0.02)))
    assert made.points[-1].loss < 0.8 * made.points[0].loss
    assert made.points[-1].scores["in_subject"] > 0.5
    assert all(0 < head.entropy < log(3) + 1e-6 for head in made.core.done.values())
    assert replace(made.strategy.local(), contrast=0.0, distil=0.0) == replace(
        Local(batch=8, lr=0.02), zero_fill=True, cache=False
    )
    assert {b for head in made.core.done.values() for b in head.blocks} == {*made.spec.names, SHARED}


def test_what_a_device_says_of_its_certainty_reaches_the_coordinator() -> None:
    update = Update(id="1", device="d", boot="b", round=1, epoch=1, assignment="a", blocks={}, samples=3, entropy=0.5)
    head = UpdateHead.of(decode(Update, update.encode()))
    assert UpdateHead.from_dict(head.to_dict()).entropy == 0.5
