"""Methods with a model per modality: Harmony and MFedMC against small cases worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from coordinator.aggregation import Contribution
from coordinator.evaluation import Evaluator, Labelled, Owner
from coordinator.serving import Serving
from coordinator.strategies import Settings
from coordinator.strategies.harmony import JOINT, Harmony, two_clusters
from coordinator.strategies.mfedmc import MFedMC, shapley_of_mean
from coordinator.work import Member, speed_from_flops
from models.local import Local
from models.network import Network
from models.partition import initial, partition
from models.spec import SHARED, InputSpec, Mode, ModelSpec
from tests.test_lab_simulate import run, tiny
from tools.lab.engine import Engine, Job
from tools.lab.unimodal import UnimodalRun

SPEC = ModelSpec((InputSpec("chest", 2, 24), InputSpec("ecg", 1, 24)), 3, widths=(4, 8), bins=2, fusion=8, rank=4)
SETTINGS = Settings(epochs=2, local=Local(batch=10))
CUT = partition(SPEC)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def member(name: str, *owned: str) -> Member:
    return Member(name, owned, 40, speed_from_flops(SPEC, 1e9), rate=1e6)


def moved(device: str, samples: int, block: str, by: float) -> Contribution:
    return Contribution(device, samples, 1.0, np.full(CUT.size(block), by, np.float32))


def test_a_modality_and_its_head_are_averaged_over_the_same_owners_by_their_samples() -> None:
    method = Harmony(SPEC, SETTINGS)
    blocks = {b: np.zeros(CUT.size(b), np.float32) for b in CUT.blocks}
    method.begin(blocks)
    for device, by in (("a", 1.0), ("b", 4.0)):
        method.trained(device, "chest", {b: np.full(CUT.size(b), by, np.float32) for b in ("chest", SHARED)})
    folded = method.fold("chest", CUT.size("chest"), [moved("a", 10, "chest", 1), moved("b", 20, "chest", 4)], 30)
    assert folded is not None
    np.testing.assert_allclose(folded.delta, 3.0)  # (10 * 1 + 20 * 4) / 30
    np.testing.assert_allclose(method.heads["chest"], 3.0)
    np.testing.assert_allclose(method.heads["ecg"], 0.0)


def test_every_modality_is_trained_alone_with_its_own_head_as_a_device_with_nothing_else_would() -> None:
    place = tiny()
    made = run(place, "harmony", rounds=1)
    assert isinstance(made, UnimodalRun) and isinstance(made.strategy, Harmony)
    start = initial(place.spec)[0]
    engine, local = Engine(place.spec, place.train.x, place.train.y), Local(batch=8)
    deltas = {}
    for device in place.devices:
        if "chest" in device.owned:
            steps = {"chest": 5, SHARED: 5}  # 2 epochs over 20 windows
            job = Job(device.id, 1, device.windows, ("chest",), steps, start, local)
            deltas[device.id] = engine.train([job])[0].deltas
    for block, now in (("chest", made.blocks["chest"]), (SHARED, made.strategy.heads["chest"])):
        expected = start[block] + np.mean([d[block] for d in deltas.values()], axis=0)
        np.testing.assert_allclose(now, expected, atol=1e-6)
    assert (made.blocks[SHARED] == start[SHARED]).all()


def test_harmonys_stage_2_is_for_devices_with_several_modalities_and_leaves_encoders_alone() -> None:
    method = Harmony(SPEC, SETTINGS)
    method.stage1 = 1  # type: ignore[misc]
    blocks = {b: np.ones(CUT.size(b), np.float32) for b in CUT.blocks}
    method.begin(blocks)
    members = [member("a", "chest", "ecg"), member("b", "chest", "ecg"), member("c", "ecg")]
    assert set(method.plan(1, members)) == {"a", "b", "c"}
    plans = method.plan(2, members)
    assert set(plans) == {"a", "b"}
    task = method.tasks("a", plans["a"].steps, {b: 2 * v for b, v in blocks.items()})[JOINT]
    base, mask = CUT.views("chest", task.base["chest"]), CUT.views("chest", task.masks["chest"])
    assert (base["encoders.chest.0.weight"] == 2).all() and not mask["encoders.chest.0.weight"].any()
    assert (base["fusion.weight.chest"] == 1).all() and mask["fusion.weight.chest"].all()
    contributions = [moved("a", 10, SHARED, 1.0), moved("b", 90, SHARED, 3.0)]
    assert method.fold(SHARED, CUT.size(SHARED), contributions, 100) is None  # the common block rests
    (weights,) = method.fusion.values()
    np.testing.assert_allclose(weights[SHARED], 1.0 + 2.0)  # equal weights, not by samples


def test_devices_whose_encoders_were_moved_alike_share_a_cluster() -> None:
    # Columns divided by their largest: (1, .1), (.9, .2), (.1, 1), (0, .9).
    assert two_clusters(np.array([[10, 1], [9, 2], [1, 10], [0, 9.0]])) == [0, 0, 1, 1]
    method = Harmony(SPEC, SETTINGS)
    method.stage1 = 0  # type: ignore[misc]
    for device, bias in (("a", 1.0), ("b", 5.0), ("c", 1.1), ("d", 4.9)):
        method.bias[device] = {"chest": bias, "ecg": 1.0}
    method.plan(1, [member(d, "chest", "ecg") for d in "abcd"])
    assert [method.groups[d][1] for d in "abcd"] == [0, 1, 0, 1]


def test_a_clusters_share_is_its_part_of_the_devices_that_own_the_same() -> None:
    method = Harmony(SPEC, SETTINGS)
    both = ("chest", "ecg")
    method.begin({b: np.zeros(CUT.size(b), np.float32) for b in CUT.blocks})
    method.groups = {"a": (both, 0), "b": (both, 1), "c": (both, 0), "d": (both, 0)}
    method.fusion = {(both, 0): {}, (both, 1): {}}
    assert [share for share, _ in method.serving(method.start).joint[both]] == [0.75, 0.25]


def test_the_shapley_values_of_a_mean_are_those_of_all_orders_of_joining() -> None:
    values, nothing = np.array([[0.9, 0.2], [0.5, 0.1], [0.1, 0.8]]), 1 / 3
    by_hand = np.zeros_like(values)
    for order in permutations(range(3)):
        for place, player in enumerate(order):
            before = values[list(order[:place])].mean(0) if place else nothing
            by_hand[player] += (values[list(order[: place + 1])].mean(0) - before) / 6
    np.testing.assert_allclose(shapley_of_mean(values, nothing), by_hand)
    np.testing.assert_allclose(by_hand.sum(0), values.mean(0) - nothing)  # what is shared out is all of it


def test_mfedmc_weighs_worth_size_and_recency_alike() -> None:
    method = MFedMC(SPEC, SETTINGS)
    chest, ecg = method.costs["chest"].bytes, method.costs["ecg"].bytes
    method._uploaded["d", "chest"] = 3
    priority = method.priority(4, "d", {"chest": 0.4, "ecg": 0.1})
    assert chest > ecg
    assert priority["chest"] == pytest.approx((1 + 0 + 1 / 4) / 3)
    assert priority["ecg"] == pytest.approx((0.25 + 1 - ecg / chest + 1) / 3)


def test_the_lowest_losses_among_those_who_propose_a_modality_upload_it() -> None:
    method = MFedMC(SPEC, SETTINGS)
    seen = {d: {"ecg": (loss, 1.0)} for d, loss in zip("abcdef", (0.5, 0.2, 0.9, 0.1, 0.3, 0.8), strict=True)}
    seen["g"] = {"chest": (2.0, 1.0)}
    chosen = method.choose(1, seen)
    assert {d for d, names in chosen.items() if names == ("ecg",)} == {"b", "d"}  # a fifth of six owners, rounded up
    assert chosen["g"] == ("chest",)
    assert chosen["a"] == ()


def test_mfedmc_computes_everything_and_sends_what_was_chosen_when_all_losses_are_known() -> None:
    place = tiny()
    made = run(place, "mfedmc", rounds=1)
    sent = [head for head in made.core.done.values() if head.blocks]
    size = {m: made.costs[m].bytes + made.costs[SHARED].bytes for m in place.spec.names}
    assert made.points[0].bytes_up == sum(size[m] for head in sent for m in head.blocks)
    assert sorted(m for head in sent for m in head.blocks) == sorted({m for h in sent for m in h.blocks})  # one owner
    assert made.points[0].bytes_down == sum(size[m] for d in place.devices for m in d.owned)
    told = max(head.seconds for head in made.core.done.values() if not head.blocks)
    assert all(head.seconds > told for head in sent)
    computed = 0.0
    for device in place.devices:
        for m in device.owned:
            cost, shared = made.costs[m], made.costs[SHARED]
            step = cost.encode + cost.fuse + cost.backward + shared.fuse + shared.backward
            computed += (40 * step + 20 * (cost.encode + cost.fuse + shared.fuse)) / device.flops * device.watts
    assert made.points[0].joules == pytest.approx(computed)  # 5 steps of 8, and 20 windows for the Shapley values


def test_harmonys_stage_2_is_charged_for_features_once_and_for_the_fusion_network() -> None:
    place = tiny()
    made = run(place, "harmony", rounds=41)  # the last one is the first of stage 2
    before, after = made.points[-2], made.points[-1]
    parts = {b: int((1 - made.strategy.encoder(b)).sum()) * 4 for b in (*place.spec.names, SHARED)}  # type: ignore[attr-defined]
    several = [d for d in place.devices if len(d.owned) > 1]
    assert after.bytes_up - before.bytes_up == sum(parts[b] for d in several for b in (*d.owned, SHARED))
    flops = 0.0
    for device in several:
        each = sum(2 * made.costs[m].fuse for m in device.owned)
        each += made.costs[SHARED].fuse + made.costs[SHARED].backward
        flops += (40 * each + 20 * sum(made.costs[m].encode for m in device.owned)) / device.flops * device.watts
    assert after.joules - before.joules == pytest.approx(flops)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("name", ["harmony", "mfedmc"])
def test_models_of_their_own_learn(name: str, mode: Mode) -> None:
    points = run(tiny(mode), name, rounds=25, every=5).points
    assert points[-1].loss < 0.8 * points[0].loss
    assert points[-1].scores["in_subject"] > 0.6


def test_modalities_without_a_joint_model_answer_with_their_mean_probability() -> None:
    rng = np.random.default_rng(4)
    x = {i.name: rng.standard_normal((30, i.channels, i.samples)).astype(np.float32) for i in SPEC.inputs}
    windows = Labelled(x, rng.integers(0, 3, 30), np.array(["1"] * 30))
    judge = Evaluator(SPEC, windows, windows, [Owner(("chest", "ecg"), ("1",)), Owner(("chest",), ("1",))])
    blocks = initial(SPEC)[0]
    heads = {m: initial(replace(SPEC, seed=n + 5))[0][SHARED] for n, m in enumerate(SPEC.names)}
    alone = {m: {m: blocks[m], SHARED: heads[m]} for m in SPEC.names}
    network, scores = Network(SPEC), []
    for m, weights in alone.items():
        for block, vector in weights.items():
            network.load(block, vector)
        with torch.no_grad():
            scores.append(network({m: torch.from_numpy(x[m])}).softmax(1))
    features = judge._features(windows, {})
    with torch.no_grad():
        ((share, both),) = judge._answers(features, Serving(alone))
        ((_, one),) = judge._answers({"ecg": features["ecg"]}, Serving(alone))
        joint = list(judge._answers(features, Serving(alone, {("chest", "ecg"): [(0.25, blocks), (0.75, blocks)]})))
    assert share == 1.0
    torch.testing.assert_close(both, (scores[0] + scores[1]) / 2)
    torch.testing.assert_close(one, scores[1])
    assert [part for part, _ in joint] == [0.25, 0.75]
    for block, vector in blocks.items():
        network.load(block, vector)
    with torch.no_grad():
        whole = network.fuse(features)
    torch.testing.assert_close(joint[0][1], whole)


def test_steps_are_those_taken_also_by_devices_that_sent_nothing() -> None:
    points = run(tiny(), "mfedmc", rounds=2).points
    assert [p.steps for p in points] == [5, 5]  # 2 epochs over 20 windows, batches of 8
