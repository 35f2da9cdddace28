"""Time to a target, ratios and gains, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.spec import Mode
from tools.lab.fleet import Fleet, Tier
from tools.lab.plan import EXPERIMENTS, Cell, Experiment, ExperimentError, Method, experiment
from tools.lab.report import ordering, report
from tools.lab.scores import SCORES, Curve, compare


def curve(method: str, scores: list[float], seconds: float, seed: int = 0) -> Curve:
    n = np.arange(1.0, len(scores) + 1)
    columns = {name: np.array(scores) for name in SCORES}
    columns |= {"round": n, "seconds": n * seconds}
    columns |= dict.fromkeys(("joules", "joules_idle", "bytes_up", "bytes_down"), n * seconds * 2)
    return Curve(method, ("fleet", "full", 0, seed), columns)


def test_a_target_counts_from_when_the_score_stays_there_for_three_evaluations() -> None:
    c = curve("m", [0.1, 0.6, 0.4, 0.6, 0.7, 0.6, 0.2], 1.0)
    assert c.reached("held_out", 0.6) == 3
    assert c.reached("held_out", 0.65) is None
    assert c.final("held_out") == pytest.approx((0.7 + 0.6 + 0.2) / 3)
    assert c.final("held_out", until=3.0) == pytest.approx((0.1 + 0.6 + 0.4) / 3)
    assert np.isnan(c.final("held_out", until=0.5))


def test_ratios_compare_both_at_the_references_final_score() -> None:
    reference = curve("fedavg", [0.1, 0.3, 0.5, 0.5, 0.5, 0.5], 10.0)
    quick = curve("relief", [0.4, 0.5, 0.6, 0.6], 2.0)
    c = compare([reference, quick], "relief", "fedavg")
    assert c.ratios["seconds/held_out"].tolist() == [30.0 / 4.0]
    assert c.ratios["round/held_out"].tolist() == [3.0 / 2.0]
    assert c.ratios["per_round"].tolist() == [5.0]
    assert c.gains["held_out"].tolist() == pytest.approx([(0.5 + 0.6 + 0.6) / 3 - 0.5])


def test_a_reference_that_stays_at_its_mean_only_in_the_end_counts_with_its_whole_length() -> None:
    reference = curve("fedavg", [0.1, 0.2, 0.3, 0.4], 10.0)
    c = compare([reference, curve("relief", [0.3, 0.3, 0.3], 1.0)], "relief", "fedavg")
    assert c.ratios["seconds/held_out"].tolist() == [40.0]


def test_a_run_that_never_gets_there_is_counted_and_kept_out_of_the_mean() -> None:
    runs = [curve("fedavg", [0.5] * 4, 10.0, seed) for seed in (0, 1)]
    runs += [curve("slow", [0.1] * 4, 1.0, 0), curve("slow", [0.6] * 4, 5.0, 1)]
    mean, low, high, reached, of = compare(runs, "slow", "fedavg").ratio("seconds/held_out")
    assert (reached, of) == (1, 2)
    assert mean == low == high == pytest.approx(2.0)


def test_methods_that_share_no_world_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no run on the same fleet"):
        compare([curve("a", [0.1] * 3, 1.0, 0), curve("b", [0.1] * 3, 1.0, 1)], "a", "b")


def test_a_cells_name_changes_with_whatever_decides_its_result_and_with_nothing_else() -> None:
    tier = Tier(name="t", devices=2, modalities=["*"], speed=1.0)

    def key(rate: float = 0.1, of: Tier = tier, **changes: object) -> str:
        methods = {"m": Method.model_validate({"strategy": "fedavg", **changes})}
        e = Experiment(name="x", reference="m", methods=methods)
        return Cell("m", "home.toml", Mode.FULL, 0, 0, rate).key(e, Fleet(name="home", dataset="dsads", tier=[of]))

    assert key() == key(title="another title") == key(learning_rate={"full": 0.1})
    others = [key(dropout=0.1), key(options={"beta": 0.5}), key(deadline="fastest"), key(b_policy="frozen")]
    assert len({key(), key(0.2), *others}) == 6
    assert key() != key(of=tier.model_copy(update={"speed": 0.5}))  # the fleet's file was edited


def test_an_experiment_file_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('reference = "nobody"\n[methods.m]\nstrategy = "fedavg"\n')
    with pytest.raises(ExperimentError, match="reference 'nobody' is none of the methods m"):
        experiment(bad)
    with pytest.raises(ExperimentError, match="those that come along: beyond"):
        experiment("nowhere")
    bad.write_text('fleets = ["mine/home.toml", "theirs/home.toml"]\n[methods.fedavg]\nstrategy = "fedavg"\n')
    with pytest.raises(ExperimentError, match="two fleets are called 'home'"):
        experiment(bad)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.toml")))
def test_every_experiment_that_comes_along_names_strategies_and_fleets_that_are_there(name: str) -> None:
    from coordinator.strategies import strategy
    from tools.lab.fleet import fleet

    e = experiment(name)
    for key, method in e.methods.items():
        cls = strategy(method.strategy)
        assert all(hasattr(cls, option) for option in method.options)
        # Given for every mode, or left to the tuning that is the same for all.
        if name == "rivals" and key not in ("fedavg", "relief"):
            assert not method.learning_rate
        else:
            assert all(mode.value in method.learning_rate for mode in e.modes)
    assert all(fleet(f).devices for f in e.fleets)


def finished(folder: Path, relief: list[float], fleet: str = "f") -> None:
    e = Experiment(
        name="x",
        reference="fedavg",
        methods={"fedavg": Method(strategy="fedavg", title="FedAvg"), "relief": Method(strategy="relief")},
    )
    (folder / "cells").mkdir()
    (folder / "experiment.json").write_text(e.model_dump_json())
    for method, scores, seconds in (("fedavg", [0.1, 0.3, 0.5, 0.5, 0.5], 10.0), ("relief", relief, 1.0)):
        points = []
        for n, score in enumerate(scores, 1):
            used = dict.fromkeys(("joules", "joules_idle", "bytes_up", "bytes_down"), n * seconds)
            points.append({"round": n, "seconds": n * seconds, **used, **dict.fromkeys(SCORES, score)})
        about = {"method": method, "fleet": fleet, "mode": "full", "fold": 0, "seed": 0, "tuning": False}
        (folder / "cells" / f"{method}.json").write_text(json.dumps({**about, "points": points}))


def test_a_report_holds_tables_and_pictures_and_ends_with_the_headline(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    finished(tmp_path, [0.6, 0.6, 0.6, 0.6])
    headline = report(tmp_path)
    assert "held-out F1 30.0x (1/1 runs)" in headline and headline.endswith("(simulated)")
    text = (tmp_path / "report.md").read_text()
    assert "30.00x (30.0 to 30.0)" in text and "**simulated**" in text
    assert (tmp_path / "curves-f-full.png").stat().st_size > 1000
    assert (tmp_path / "curves-f-full.svg").read_text().lstrip().startswith("<?xml")
    assert ordering(tmp_path) == []


def test_a_fleet_file_gives_the_report_its_name_and_not_its_path(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    finished(tmp_path, [0.6, 0.6, 0.6, 0.6], fleet="my/home.v2.toml")
    assert report(tmp_path).startswith("home.v2/full: ")
    assert "![curves](curves-home.v2-full.png)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "curves-home.v2-full.png").is_file() and (tmp_path / "curves-home.v2-full.svg").is_file()


def test_the_ordering_fails_by_name_where_relief_is_behind(tmp_path: Path) -> None:
    finished(tmp_path, [0.1, 0.1, 0.1, 0.1])
    assert ordering(tmp_path) == ["fedavg: never (0/1 runs)"]
    assert report(tmp_path).startswith(
        "f/full: time to FedAvg's held-out F1 never (0/1 runs), in-subject never (0/1 runs), rare"
    )


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    e = Experiment(name="x", reference="m", methods={"m": Method(strategy="fedavg")})
    (tmp_path / "experiment.json").write_text(e.model_dump_json())
    with pytest.raises(ValueError, match="holds no finished run"):
        report(tmp_path)
