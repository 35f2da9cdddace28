"""Regret against an oracle: worked out by hand, seen by nobody, charged to nobody."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from coordinator.aggregation import Divergence
from coordinator.strategies import STRATEGIES, Settings
from coordinator.strategies.oracle import Oracle
from coordinator.work import Member, speed_from_flops
from models.cost import block_costs
from models.local import Local
from models.spec import SHARED, InputSpec, ModelSpec
from tests.test_lab_simulate import run, tiny
from tools.lab.plan import Experiment, Method
from tools.lab.regret import regret
from tools.lab.report import report
from tools.lab.scores import SCORES, RegretCurve
from tools.lab.world import World

SPEC = ModelSpec((InputSpec("a", 1, 8), InputSpec("b", 1, 8)), 2, widths=(), fusion=4)


@pytest.fixture(scope="module")
def place() -> World:
    return tiny()


def one_block(spec: ModelSpec) -> Settings:
    """An uplink that carries the shared block and one other; three local steps of a full round."""
    costs = block_costs(spec)
    return Settings(epochs=1, bytes=costs[SHARED].bytes + costs["a"].bytes, local=Local(batch=10))


def test_regret_is_the_best_value_under_the_same_budgets_minus_the_chosen_one() -> None:
    method = STRATEGIES["relief"](SPEC, one_block(SPEC))
    speed = speed_from_flops(SPEC, 1e9)
    members = [Member("x", ("a", "b"), 30, speed), Member("y", ("b",), 10, speed), Member("z", ("a",), 10, speed)]
    assigned = {"x": {"b": 3, SHARED: 3}, "y": {"b": 1, SHARED: 1}}  # x could have had a, z nothing at all
    chosen, best = regret(method, members, assigned, {"a": 1.0, "b": 0.25})
    assert chosen == pytest.approx(0.25 * log(4) + 0.25 * log(2))
    assert best == pytest.approx(log(4) + 0.25 * log(2) + log(2))


def test_the_oracle_takes_what_is_divergent_now_whatever_it_has_seen_before() -> None:
    oracle = Oracle(SPEC, one_block(SPEC))
    member = Member("x", ("a", "b"), 30, speed_from_flops(SPEC, 1e9))
    for round, first in enumerate(("a", "b", "b", "a"), 1):
        true = {m: (Divergence(0.9 if m == first else 0.3, 1.0, 1.0, 2), 5.0) for m in "ab"}
        oracle.reveal(true)
        assert oracle.utility(round) == {first: 1.0, "ab".replace(first, ""): pytest.approx(1 / 3)}
        assert oracle.plan(round, [member])["x"].steps == {first: 3, SHARED: 3}


def test_an_oracle_outside_the_laboratory_says_where_it_can_run() -> None:
    with pytest.raises(TypeError, match="`relief simulate`"):
        Oracle(SPEC, Settings()).plan(1, [Member("x", ("a",), 30, speed_from_flops(SPEC, 1e9))])


def test_the_truth_is_what_a_full_round_of_everybody_would_have_shown(place: World) -> None:
    settings = Settings(epochs=2, deadline="none", local=Local(batch=8))
    full = run(place, "cohort-only", rounds=1, settings=settings)
    seen: dict[str, tuple[Divergence, float]] = {}

    class Listening(Oracle):
        def reveal(self, true: dict[str, tuple[Divergence, float]]) -> None:  # type: ignore[override]
            seen.update(true)
            super().reveal(true)

    STRATEGIES["listening"] = Listening
    try:
        run(place, "listening", rounds=1, settings=settings)
    finally:
        del STRATEGIES["listening"]
    shown = full.strategy.divergence()
    assert len(shown) == 3
    assert {m: seen[m][0].value for m in shown} == pytest.approx(shown)


@pytest.mark.parametrize("name", ["relief-momentum-samples", "oracle"])
def test_looking_changes_nothing_of_a_run_and_regret_is_never_negative(name: str, place: World) -> None:
    blind, seeing = run(place, name, rounds=8), run(place, name, rounds=8, compare=True)
    assert blind.points == seeing.points
    assert [r.round for r in seeing.regrets] == list(range(1, 9)) and not blind.regrets
    assert all(-1e-9 <= r.chosen <= r.best + 1e-9 for r in seeing.regrets)
    assert seeing.regrets[-1].best > 0


def test_an_oracle_without_floors_due_regrets_nothing_where_random_blocks_do(place: World) -> None:
    costs = block_costs(place.spec)
    allowance = costs[SHARED].bytes + max(costs[m].bytes for m in place.spec.names)
    settings = Settings(epochs=2, deadline="fastest", bytes=allowance, local=Local(batch=8))
    knowing, dicing = (
        run(place, name, rounds=8, settings=settings, compare=True).regrets
        for name in ("oracle", "relief-momentum-random")
    )
    assert all(r.chosen == pytest.approx(r.best) for r in knowing[:3])
    assert sum(r.best - r.chosen for r in dicing) > 1.5 * sum(r.best - r.chosen for r in knowing)


def test_regret_curves_add_up() -> None:
    result = {"method": "m", "fleet": "f", "mode": "full", "fold": 0, "seed": 0}
    rounds = [{"round": n, "chosen": c, "best": b} for n, (c, b) in enumerate([(1.0, 4.0), (2.0, 4.0), (4.0, 4.0)], 1)]
    curve = RegretCurve.of({**result, "regret": rounds})
    np.testing.assert_allclose(curve.cumulative(), [3.0, 5.0, 5.0])
    assert curve.part() == pytest.approx(5 / 12)
    assert curve.part(2) == 0.0 == curve.part(3)


def test_the_report_has_regret_as_table_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    methods = {"fedavg": Method(strategy="fedavg"), "relief": Method(strategy="relief", title="RELIEF", regret=True)}
    e = Experiment(name="x", reference="fedavg", methods=methods)
    (tmp_path / "cells").mkdir()
    (tmp_path / "experiment.json").write_text(e.model_dump_json())
    used = dict.fromkeys(("joules", "joules_idle", "bytes_up", "bytes_down", *SCORES), 0.5)
    for method in methods:
        points = [{"round": n, "seconds": float(n), **used} for n in range(1, 5)]
        kept = [{"round": n, "seconds": float(n), "chosen": 3.0, "best": 4.0} for n in range(1, 25)]
        about = {"method": method, "fleet": "f", "mode": "full", "fold": 0, "seed": 0, "tuning": False}
        plain = {**about, "points": points, "regret": kept if method == "relief" else []}
        (tmp_path / "cells" / f"{method}.json").write_text(json.dumps(plain))
    report(tmp_path)
    assert "| RELIEF | 25.0 % | 25.0 % | 25.0 % | 24.0 in 24 rounds |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "regret-f-full.png").stat().st_size > 1000
    assert (tmp_path / "regret-f-full.svg").read_text().lstrip().startswith("<?xml")
