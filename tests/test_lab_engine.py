"""The engine trains many devices at once and gives each the weights that the device's own trainer gives it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from device_runtime.trainer import train  # noqa: E402  torch is optional, so it is looked for first
from models.local import Local  # noqa: E402
from models.network import Network  # noqa: E402
from models.partition import Vector, initial, partition  # noqa: E402
from models.spec import SHARED, BPolicy, InputSpec, Mode, ModelSpec  # noqa: E402
from tools.lab.engine import Engine, Job  # noqa: E402

INPUTS = (InputSpec("chest", 3, 40), InputSpec("wrist", 3, 40), InputSpec("ankle", 2, 33))
CONV = ModelSpec(INPUTS, 4, widths=(5, 6), bins=4, fusion=7, rank=2)
WIDE = replace(CONV, widths=(4, 6, 8), kernel=3, stride=1, bins=3)
FLAT = replace(CONV, widths=())
LORA = replace(CONV, mode=Mode.LORA)
ADAPTED = replace(LORA, encoder_rank=2)
FROZEN_B = replace(LORA, b_policy=BPolicy.FROZEN)
IN_TURN = replace(ADAPTED, b_policy=BPolicy.ALTERNATE)
EXACT = Local(lr=0.05, batch=8, seed=3, double=True)


def world(spec: ModelSpec, n: int = 60) -> tuple[dict[str, Vector], Vector, dict[str, Vector], dict[str, Vector]]:
    """Windows, classes, trainable and frozen vectors; every tensor is away from its initial zeros."""
    rng = np.random.default_rng(5)
    x = {i.name: rng.standard_normal((n, i.channels, i.samples)).astype(np.float32) for i in spec.inputs}
    trainable, frozen = initial(spec)
    for vectors in (trainable, frozen):
        for block, vector in vectors.items():
            vectors[block] = vector + 0.05 * rng.standard_normal(len(vector)).astype(np.float32)
    return x, rng.integers(0, spec.classes, n), trainable, frozen


def fleet(base: dict[str, Vector], local: Local) -> list[Job]:
    """Devices that differ in what they own, how many windows they have and how many steps each block gets."""
    rows = np.random.default_rng(6).permutation(60)
    return [
        Job("d0", 2, rows[:20], ("chest", "wrist", "ankle"), {"chest": 6, "wrist": 3, SHARED: 6}, base, local),
        Job("d1", 2, rows[20:33], ("chest", "ankle"), {"chest": 4, "ankle": 7, SHARED: 7}, base, local),
        Job("d2", 2, rows[33:53], ("wrist",), {"wrist": 5, SHARED: 5}, base, local),
        Job("d3", 2, rows[53:58], ("ankle", "wrist"), {SHARED: 2}, base, local),
    ]


def alone(spec: ModelSpec, job: Job, x: dict[str, Vector], y: Vector, frozen: dict[str, Vector]):
    """The same job by the device's trainer."""
    network = Network(spec).double()
    for block, vector in job.base.items():
        network.load(block, vector)
    for block, vector in frozen.items():
        network.load(block, vector, base=True)
    own = {m: torch.from_numpy(x[m][job.windows]) for m in job.owned}
    return train(
        network, own, torch.from_numpy(y[job.windows]), job.steps, job.local, device=job.device, round=job.round
    )


@pytest.mark.parametrize(
    "spec",
    [CONV, WIDE, FLAT, LORA, ADAPTED, FROZEN_B, IN_TURN],
    ids=["conv", "wide", "flat", "lora", "adapted", "b", "turn"],
)
@pytest.mark.parametrize(
    "local",
    [
        EXACT,
        replace(EXACT, momentum=0.0),
        replace(EXACT, dropout=0.5),
        replace(EXACT, prox=0.3, clip=0.4),
        replace(EXACT, zero_fill=True),
        replace(EXACT, zero_fill=True, dropout=0.4, clip=1.0),
        replace(EXACT, own_classes=True),
    ],
    ids=["plain", "still", "dropout", "limits", "zeros", "all", "classes"],
)
def test_stacked_devices_get_the_weights_that_their_own_trainer_gives_them(spec: ModelSpec, local: Local) -> None:
    x, y, base, frozen = world(spec)
    jobs = fleet(base, local)
    if local.zero_fill:
        jobs[2] = replace(jobs[2], steps={"chest": 5, "wrist": 5, "ankle": 4, SHARED: 5})
    works = Engine(spec, x, y, frozen).train(jobs)
    for job, work in zip(jobs, works, strict=True):
        expected = alone(spec, job, x, y, frozen)
        assert work.steps == expected.steps
        assert work.loss == pytest.approx(expected.loss, rel=1e-6)
        assert work.deltas.keys() == expected.deltas.keys()
        for block, delta in expected.deltas.items():
            np.testing.assert_allclose(work.deltas[block], delta, rtol=0, atol=1e-6 * max(1.0, np.abs(delta).max()))


@pytest.mark.parametrize(("round", "rests"), [(1, "fusion.lora_a"), (2, "fusion.lora_b"), (3, "fusion.lora_a")])
def test_a_and_b_are_trained_in_turn_in_stack_and_trainer(round: int, rests: str) -> None:
    x, y, base, frozen = world(IN_TURN)
    masks = {SHARED: np.ones(len(base[SHARED]), np.float32)}  # as methods have them whose devices hold a part
    jobs = [replace(job, round=round, masks=masks) for job in fleet(base, EXACT)]
    for job, work in zip(jobs, Engine(IN_TURN, x, y, frozen).train(jobs), strict=True):
        for deltas in (work.deltas, alone(IN_TURN, job, x, y, frozen).deltas):
            for block, delta in deltas.items():
                for name, change in partition(IN_TURN).views(block, delta).items():
                    assert (np.abs(change).max() > 0) != name.startswith(rests), name


@pytest.mark.parametrize("spec", [CONV, FLAT, LORA, ADAPTED, FROZEN_B], ids=["conv", "flat", "lora", "adapted", "b"])
@pytest.mark.parametrize(
    "changes",
    [
        {"contrast": 1.0},
        {"distil": 0.7},
        {"contrast": 0.5, "distil": 1.0, "zero_fill": True, "cache": False, "clip": 0.5},
    ],
    ids=["contrast", "distil", "both"],
)
def test_second_views_and_the_bases_predictions_are_the_same_in_stack_and_trainer(
    spec: ModelSpec, changes: dict[str, float]
) -> None:
    x, y, base, frozen = world(spec)
    local = replace(EXACT, lr=0.01, **changes)  # type: ignore[arg-type]
    jobs = fleet(base, local)
    for n, job in enumerate(jobs):
        present = spec.names if local.zero_fill else job.owned
        jobs[n] = replace(job, steps=dict.fromkeys((*present, SHARED), job.total))
    engine = Engine(spec, x, y, frozen)
    near = 2e-5 if engine.resident else 1e-6  # kept features are float32, and likeness is divided by 0.1
    works = engine.train(jobs)
    plain = engine.train([replace(job, local=replace(local, contrast=0.0, distil=0.0)) for job in jobs])
    for job, work, without in zip(jobs, works, plain, strict=True):
        expected = alone(spec, job, x, y, frozen)
        assert work.steps == expected.steps
        assert work.loss == pytest.approx(expected.loss, rel=near)
        assert work.entropy == pytest.approx(expected.entropy, rel=near)
        assert 0 < work.entropy < np.log(spec.classes) + 1e-9
        for block, delta in expected.deltas.items():
            np.testing.assert_allclose(work.deltas[block], delta, rtol=0, atol=near * max(1.0, np.abs(delta).max()))
        alike = all(np.allclose(work.deltas[b], without.deltas[b], atol=1e-5) for b in work.deltas)
        assert alike == (not local.distil and len(job.owned) == 1)  # one modality alone has no second view


def test_views_are_refused_where_a_block_rests() -> None:
    x, y, base, frozen = world(CONV)
    with pytest.raises(ValueError, match="need every present block trained"):
        Engine(CONV, x, y, frozen).train(fleet(base, replace(EXACT, distil=1.0)))


def test_classes_that_a_device_has_no_window_of_are_not_pushed_down() -> None:
    x, y, base, frozen = world(CONV)
    rows = np.flatnonzero(y != 2)[:20]
    job = Job("d", 1, rows, ("chest",), {"chest": 3, SHARED: 3}, base, EXACT)
    engine = Engine(CONV, x, y, frozen)
    masked, plain = engine.train([replace(job, local=replace(EXACT, own_classes=True)), job])
    shared = partition(CONV).views(SHARED, masked.deltas[SHARED])
    assert not shared["head.weight"][2].any() and shared["head.bias"][2] == 0
    assert shared["head.bias"][0] != 0
    assert partition(CONV).views(SHARED, plain.deltas[SHARED])["head.bias"][2] < 0
    expected = alone(CONV, replace(job, local=replace(EXACT, own_classes=True)), x, y, frozen)
    np.testing.assert_allclose(masked.deltas[SHARED], expected.deltas[SHARED], atol=1e-9)
