"""Runs in virtual time: the coordinator's own core decides, the clock adds up, a seed gives the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from coordinator.evaluation import Evaluator, Labelled, Owner
from coordinator.strategies import STRATEGIES, Settings, strategy
from models.local import Local
from models.spec import SHARED, InputSpec, Mode, ModelSpec
from sensors.windows import Windows
from tools.lab.base import starting_point
from tools.lab.cells import run_of
from tools.lab.engine import Engine, Job, Work
from tools.lab.fleet import Fleet, Tier
from tools.lab.simulate import Point, Run
from tools.lab.world import LabDevice, World

INPUTS = (InputSpec("chest", 2, 24), InputSpec("ecg", 1, 24), InputSpec("wrist", 2, 24))
SMALL = ModelSpec(INPUTS, 3, widths=(4, 6), bins=2, fusion=8, rank=2, seed=1)
OWNED = (SMALL.names, SMALL.names, ("ecg",), ("wrist",), ("ecg", "wrist"))
IDLE = (2.0, 2.0, 0.5, 0.5, 0.5)


def windows(n: int, rng: np.random.Generator) -> Windows:
    """Windows of three classes that differ in level and rhythm, so that there is something to learn."""
    y = rng.integers(0, 3, n)
    time = np.arange(24)
    x = {}
    for i in INPUTS:
        wave = np.sin(time[None, None] * (0.3 + 0.4 * y[:, None, None])) + 0.5 * y[:, None, None]
        x[i.name] = (wave + 0.5 * rng.standard_normal((n, i.channels, i.samples))).astype(np.float32)
    return Windows(x, y, np.zeros(n, np.int64), np.zeros(n, np.float32), ("1",))


def tiny(mode: Mode = Mode.FULL, public: int = 40) -> World:
    """Five devices: two own everything and are fast, three own little and are slow."""
    rng = np.random.default_rng(3)
    train, test = windows(100, rng), windows(40, rng)
    spec = replace(SMALL, mode=mode)
    devices = tuple(
        LabDevice(
            id=f"d{n}",
            tier="rich" if n < 2 else "poor",
            owned=owned,
            subject="1",
            windows=np.arange(20 * n, 20 * n + 20),
            flops=1e7 if n < 2 else 1e6,
            rate=1e6,
            down=1e6,
            latency=0.0 if n < 2 else 0.001,
            watts=5.0,
            idle_watts=IDLE[n],
        )
        for n, owned in enumerate(OWNED)
    )
    labelled = Labelled(test.x, test.y, np.array(["1"] * len(test)))
    judge = Evaluator(spec, labelled, labelled, [Owner(d.owned, ("1",)) for d in devices])
    tier = Tier(name="any", devices=5, modalities=["*"], speed=1.0)
    fleet = Fleet(name="tiny", dataset="made here", tier=[tier])
    return World(fleet, spec, devices, train, windows(public, rng), {"test": judge})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place() -> World:
    return tiny()


def run(place: World, name: str, rounds: int = 3, *, settings: Settings | None = None, **more: object) -> Run:
    blocks, frozen = starting_point(place)
    method = strategy(name)(place.spec, settings or Settings(epochs=2, deadline="fastest", local=Local(batch=8)))
    made = run_of(method)(
        place, method, Engine(place.spec, place.train.x, place.train.y, frozen), blocks, frozen, rounds, **more
    )
    made.go()
    return made


def test_a_seed_gives_the_same_run_to_the_last_bit(place: World) -> None:
    a, b = run(place, "relief"), run(place, "relief")
    assert a.points == b.points
    assert all((a.blocks[block] == b.blocks[block]).all() for block in a.blocks)


def test_a_round_lasts_as_long_as_its_slowest_device_and_everybody_idles_meanwhile(place: World) -> None:
    made = run(place, "fedavg", rounds=1)
    slowest = max(head.seconds for head in made.core.done.values())
    idle = sum(IDLE)
    assert made.points[0].seconds == pytest.approx(slowest)
    assert made.points[0].joules_idle - made.points[0].joules == pytest.approx(slowest * idle)


def test_totals_only_grow_and_every_wanted_round_is_scored(place: World) -> None:
    points = run(place, "relief", rounds=5, every=2).points
    assert [p.round for p in points] == [2, 4, 5]
    for name in ("seconds", "joules", "joules_idle", "bytes_up", "bytes_down"):
        values = [getattr(p, name) for p in points]
        assert values == sorted(values) and values[0] > 0
    assert all(0.0 <= v <= 1.0 for p in points for k, v in p.scores.items() if k != "rare_drop")


def test_the_watcher_ends_a_run(place: World) -> None:
    seen: list[Point] = []

    def enough(point: Point) -> bool:
        seen.append(point)
        return point.round == 2

    assert [p.round for p in run(place, "relief", rounds=9, watch=enough).points] == [1, 2] == [p.round for p in seen]


def test_a_deadline_is_kept_by_every_device_that_masked_fedavg_keeps_waiting(place: World) -> None:
    cut, whole = run(place, "cohort-steps", rounds=2), run(place, "fedavg-masked", rounds=2)
    assert cut.points[-1].seconds < 0.5 * whole.points[-1].seconds


def test_a_learned_deadline_tries_other_lengths_and_keeps_within_them(place: World) -> None:
    settings = Settings(epochs=2, deadline="learned", local=Local(batch=8))
    made = run(place, "cohort-steps", rounds=24, settings=settings)
    lengths = np.diff([0.0, *(p.seconds for p in made.points)])
    assert made.strategy.pacing is not None and len(made.strategy.pacing.brought) == 2
    assert lengths[:4].max() > 1.2 * lengths[4:12].min(), "the second stay is a shorter one"


def test_blocks_are_fetched_once_and_again_only_when_they_have_changed(place: World) -> None:
    made = run(place, "cohort-only", rounds=2)
    per_round = sum(made.costs[b].bytes for d in place.devices for b in (*d.owned, SHARED))
    assert made.points[0].bytes_down == per_round
    assert made.points[1].bytes_down == 2 * per_round


def test_in_lora_features_of_frozen_encoders_are_charged_once(place: World) -> None:
    place = tiny(Mode.LORA)
    points = run(place, "cohort-only", rounds=3).points
    first, second, third = np.diff([0.0, *(p.joules for p in points)])
    assert second == pytest.approx(third)
    assert first > 1.5 * second


def test_int8_updates_send_a_quarter_and_still_learn(place: World) -> None:
    settings = Settings(epochs=2, deadline="none", local=Local(batch=8))
    whole = run(place, "cohort-only", rounds=6, settings=settings)
    small = run(place, "cohort-only", 6, settings=replace(settings, local=Local(batch=8, wire="|i1")))
    assert small.points[-1].bytes_up == pytest.approx(whole.points[-1].bytes_up / 4, rel=1e-3)
    assert small.points[-1].loss < 0.9 * small.points[0].loss
    assert small.points[-1].loss == pytest.approx(whole.points[-1].loss, rel=0.1)


def test_without_rounds_fast_devices_answer_often_and_stale_updates_weigh_less(place: World) -> None:
    made = run(place, "fedbuff", rounds=3)
    assert made._times["d0"] > 2 * made._times["d2"] > 0  # d0 is ten times as fast
    method = strategy("fedbuff")(place.spec, Settings())
    assert [method.weight(s) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    np.testing.assert_allclose(method.step(np.zeros(1), [np.ones(1), np.ones(1)], [0, 3]), 0.75)


class Spoilt(Engine):
    """Devices whose training runs away."""

    lost: tuple[str, ...] = ()

    def train(self, jobs: Sequence[Job]) -> list[Work]:
        works = super().train(jobs)
        return [
            replace(work, deltas={b: np.full_like(d, np.nan) for b, d in work.deltas.items()})
            if job.device in self.lost
            else work
            for job, work in zip(jobs, works, strict=True)
        ]


RUNS = ("relief", "heterofl", "fedsa-lora", "harmony", "mfedmc", "fedbuff")  # of every kind, with all that they keep


@pytest.mark.parametrize("name", RUNS)
def test_a_device_whose_training_runs_away_declines_as_a_real_one_does(
    name: str, place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = run(place, name)
    monkeypatch.setattr("tests.test_lab_simulate.Engine", Spoilt)
    monkeypatch.setattr(Spoilt, "lost", ("d1",))
    without = run(place, name)
    assert all(np.isfinite(vector).all() for vector in without.blocks.values())
    assert [p.round for p in without.points] == [1, 2, 3]
    if name not in ("fedbuff", "mfedmc"):  # where somebody else sends instead
        assert without.points[-1].bytes_up < well.points[-1].bytes_up


@pytest.mark.parametrize("name", RUNS)
def test_where_all_run_away_the_model_stays_as_it_was_and_the_run_ends(
    name: str, place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_lab_simulate.Engine", Spoilt)
    monkeypatch.setattr(Spoilt, "lost", tuple(d.id for d in place.devices))
    lost = run(place, name)
    first, _ = starting_point(place)
    assert all((lost.blocks[block] == first[block]).all() for block in first)
    assert lost.clock.up == 0


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("mode", list(Mode))
def test_every_method_moves_the_model_and_keeps_it_finite(name: str, mode: Mode) -> None:
    place = tiny(mode)
    before = starting_point(place)[0]
    made = run(place, name, rounds=2)
    assert all(np.isfinite(v).all() for v in made.blocks.values())
    assert any((made.blocks[b] != before[b]).any() for b in before)
    assert made.points[-1].seconds > 0


def test_lora_without_public_windows_says_what_to_set() -> None:
    place = tiny(Mode.LORA, public=0)
    with pytest.raises(ValueError, match="set `public` to a number of subjects"):
        starting_point(place)
