"""Experiments resume where they stopped, tune every method alike, and leave one tidy table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from models.spec import Mode
from tools.lab.cells import run_cell
from tools.lab.experiment import Lab
from tools.lab.plan import Cell, Experiment, Method, Sizes, Tuning

FLEET = """
dataset = "synthetic"
gflops = 0.01
[[tier]]
name = "rich"
devices = 6
modalities = ["ecg", "heart_rate", "wrist_acc"]
speed = 1.0
rate = 1e6
watts = 3.0
[[tier]]
name = "poor"
devices = 6
modalities = ["wrist_acc"]
speed = 0.2
rate = 1e6
watts = 1.0
"""

SMALL = Sizes(widths=[3], fusion=6, bins=2)


def test_a_method_is_run_in_its_modes_only(tmp_path: Path) -> None:
    def plan(**of_it: list[Mode]) -> Experiment:
        methods = {name: Method(strategy=name, modes=modes) for name, modes in of_it.items()}
        return Experiment(name="x", modes=[Mode.FULL, Mode.LORA], folds=[0], seeds=[0], methods=methods)

    some = plan(fedavg=[], fedit=[Mode.LORA])
    rates = {f"{m}/{mode.value}": 0.1 for m in some.methods for mode in some.modes}
    lab = Lab(some, tmp_path, say=str)
    cells = lab.cells(rates, list(some.methods))
    ran = {(c.method, c.mode) for c in cells}
    assert ran == {("fedavg", Mode.FULL), ("fedavg", Mode.LORA), ("fedit", Mode.LORA)}
    everywhere = plan(fedavg=[], fedit=[])
    assert all(c.key(some, lab.fleets[c.fleet]) == c.key(everywhere, lab.fleets[c.fleet]) for c in cells)
    with pytest.raises(ValueError, match="reference 'fedavg' must run in every mode, also in full"):
        plan(fedavg=[Mode.LORA])


def test_a_run_ends_by_its_clock_alone_and_says_so_where_it_never_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = tmp_path / "tiny.toml"
    fleet.write_text(FLEET)
    plan = Experiment(
        name="x", fleets=[str(fleet)], epochs=0.05, model=SMALL, methods={"fedavg": Method(strategy="fedavg")}
    )
    by_rounds = Cell("fedavg", str(fleet), Mode.FULL, 0, 0, 0.05)
    once = run_cell(plan.model_copy(update={"rounds": {"full": 1}}), by_rounds)["points"][-1]["seconds"]
    points = run_cell(plan, replace(by_rounds, clock=450.5 * once))["points"]
    assert len(points) == points[-1]["round"] == 451
    monkeypatch.setattr("tools.lab.cells.ENDLESS", 20)
    with pytest.raises(RuntimeError, match=r"20 rounds took it to .* its rounds are too short"):
        run_cell(plan, replace(by_rounds, clock=450.5 * once))


@pytest.mark.timeout(280)
def test_an_experiment_resumes_tunes_alike_and_leaves_a_tidy_table(tmp_path: Path) -> None:
    fleet = tmp_path / "tiny.toml"
    fleet.write_text(FLEET)
    plan = Experiment(
        name="x",
        fleets=[str(fleet)],
        folds=[0],
        seeds=[0],
        rounds={"full": 3},
        epochs=0.1,
        model=SMALL,
        tuning=Tuning(rates=[0.02, 0.1], folds=[0]),
        reference="fedavg",
        methods={
            "fedavg": Method(strategy="fedavg", learning_rate={"full": 0.05}),
            "relief": Method(strategy="relief", deadline="fastest", until=0.5),
        },
    )
    said: list[str] = []
    first = Lab(plan, tmp_path / "out", workers=1, say=said.append).run()
    assert json.loads((tmp_path / "out" / "rates.json").read_text())["relief/full"] in (0.02, 0.1)
    trials = [json.loads(f.read_text()) for f in (tmp_path / "out" / "cells").glob("*-s100-*.json")]
    assert sorted(t["rate"] for t in trials if t["method"] == "relief") == [0.02, 0.1]
    assert all(t["tuning"] for t in trials)
    assert "tuning 1 learning rates takes 2 runs: 1 x 2 rates x 1 folds, test windows unseen" in said
    assert json.loads((tmp_path / "out" / "tuning.json").read_text())["scores"].keys() == {"relief/full"}
    # A trial is as long as the method's own runs: half of the reference's clock.
    seconds = {t["method"]: t["points"][-1]["seconds"] for t in trials}
    assert seconds["relief"] == pytest.approx(seconds["fedavg"] / 2, rel=0.6)
    assert any("left" in line for line in said)

    rows = list(csv.DictReader((tmp_path / "out" / "points.csv").read_text().splitlines()))
    assert len(rows) == sum(len(r["points"]) for r in first)
    assert {row["method"] for row in rows} == {"fedavg", "relief"}
    clock = [r["points"][-1]["seconds"] for r in first]
    assert clock[1] == pytest.approx(clock[0] / 2, rel=0.6)

    lost = next((tmp_path / "out" / "cells").glob("*-relief-f0-s0-*.json"))
    before = json.loads(lost.read_text())
    lost.unlink()
    said.clear()
    Lab(plan, tmp_path / "out", workers=1, say=said.append).run()
    assert [line for line in said if "runs to do" in line] == ["methods: 1 runs to do, 0 are there"]
    again = json.loads(lost.read_text())
    assert again["points"] == before["points"]


def test_a_run_that_fails_costs_only_itself(tmp_path: Path) -> None:
    fleet = tmp_path / "tiny.toml"
    fleet.write_text(FLEET)
    rates = {"full": 0.05}
    plan = Experiment(
        name="x",
        fleets=[str(fleet)],
        folds=[0],
        seeds=[0, 1],
        rounds={"full": 2},
        epochs=0.1,
        model=SMALL,
        methods={
            "fedavg": Method(strategy="fedavg", learning_rate=rates),
            "broken": Method(strategy="relief", learning_rate=rates, options={"speling": 1.0}),
            "relief": Method(strategy="relief", learning_rate=rates, deadline="fastest", until=0.5),
        },
    )
    said: list[str] = []
    with pytest.raises(ValueError, match="method broken: strategy relief has no option speling"):
        Lab(plan, tmp_path / "out", workers=2, say=said.append).run()
    assert said[-1].startswith("2 of 4 runs failed, first broken on ")
    assert len(list((tmp_path / "out" / "cells").glob("*-relief-*.json"))) == 2
