"""Measured beside simulated: the processes are the simulated fleet's twins, and its speeds are what they said."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("torch")

from coordinator.registry import flops_per_second
from models.cost import block_costs
from models.spec import InputSpec, Mode, ModelSpec
from protocol.messages import BlockSpeed, Status
from tools.lab.beside import beside, written
from tools.lab.calibrate import as_toml, calibrated
from tools.lab.fleet import Fleet, Tier, fleet
from tools.lab.measure import Measured, measure
from tools.lab.plan import Experiment, ExperimentError, Method, Sizes
from tools.lab.scores import SCORES

SPEC = ModelSpec((InputSpec("a", 1, 8), InputSpec("b", 1, 8)), 2, widths=(), fusion=4)
FLEET = """
dataset = "synthetic"
[[tier]]
name = "rich"
devices = 1
modalities = ["*"]
speed = 1.0
watts = 3.0
[[tier]]
name = "poor"
devices = 2
modalities = ["wrist_acc"]
speed = 0.5
watts = 1.0
"""


def born(tier: str, flops: float) -> Status:
    """A device that measured itself at so many FLOPs per second, slower in one block than in another."""
    costs = block_costs(SPEC)
    speed = {b: BlockSpeed(forward=c.forward / flops, backward=c.backward / flops) for b, c in costs.items()}
    return Status(online=True, boot="b", tier=tier, speed=speed)


def test_speeds_are_the_median_of_what_a_tiers_devices_said_and_latency_is_what_rounds_took_beyond() -> None:
    tiers = [
        Tier(name="hub", devices=1, modalities=["*"], speed=1.0, watts=5.0, cpu=0.5),
        Tier(name="band", devices=3, modalities=[["a"], ["b"]], speed=0.9),
    ]
    births = {"h": born("hub", 8e6)} | {f"b{n}": born("band", f) for n, f in enumerate((1e6, 2e6, 5e6))}
    assert flops_per_second(SPEC, births["h"]) == pytest.approx(8e6)
    devices = {"h": {"seconds": 1.0}, "b0": {"seconds": 3.0}}
    rounds = [{"began": 10.0, "ended": 10.0 + took, "devices": devices} for took in (3.1, 3.2, 9.0)]
    made = calibrated(Fleet(name="x", dataset="synthetic", tier=tiers), SPEC, births, rounds)
    assert made.gflops == pytest.approx(8e-3)
    assert [t.speed for t in made.tier] == pytest.approx([1.0, 0.25])
    assert [t.latency for t in made.tier] == pytest.approx([0.2, 0.2])
    assert made.tier[0].cpu == 0.5
    with pytest.raises(ValueError, match="tier band: no device has said how fast it is"):
        calibrated(made, SPEC, {"h": births["h"]}, rounds)


def test_a_calibrated_fleet_is_a_fleet_file(tmp_path: Path) -> None:
    made = fleet("eight")
    path = tmp_path / "eight.toml"
    path.write_text(as_toml(made, "About it."))
    assert fleet(path) == made
    assert path.read_text().startswith("# About it.\n")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"modes": [Mode.LORA]}, "only one fleet in mode full is measured"),
        ({"methods": {"m": Method(strategy="relief")}}, "give its learning_rate"),
        (
            {"methods": {"m": Method(strategy="relief", learning_rate={"full": 0.1}, options={"kappa": 0.7})}},
            "a coordinator has no option kappa",
        ),
    ],
)
def test_what_has_no_counterpart_in_real_processes_is_refused(
    changes: dict[str, object], told: str, tmp_path: Path
) -> None:
    methods = {"m": Method(strategy="relief", learning_rate={"full": 0.1})}
    plan = Experiment(name="x", reference="m", methods=methods).model_copy(update=changes)
    with pytest.raises(ExperimentError, match=told):
        measure(plan, tmp_path)


def test_the_report_sets_ratio_beside_ratio_and_says_where_the_machine_was_busy(tmp_path: Path) -> None:
    methods = {"fedavg": Method(strategy="fedavg"), "relief": Method(strategy="relief", title="RELIEF")}
    e = Experiment(name="x", reference="fedavg", methods=methods)

    def runs(slow: float, fast: float) -> list[dict[str, object]]:
        found = []
        for method, seconds in (("fedavg", slow), ("relief", fast)):
            used = dict.fromkeys(("joules", "joules_idle", "bytes_up", "bytes_down", *SCORES), 0.5)
            points = [{**used, "round": n, "seconds": n * seconds} for n in range(1, 5)]
            found.append({"method": method, "fleet": "f", "mode": "full", "fold": 0, "seed": 0, "points": points})
        return found

    (tmp_path / "f.toml").write_text('dataset = "x"')
    real = Measured(runs(10.0, 1.0), tmp_path / "f.toml", {"hub": (0.35, 0.13), "band": (0.08, 0.08)})
    lines, headline = written(e, real, runs(10.0, 1.25))
    assert "| seconds a round | 10.00x | 8.00x | +25 % |" in lines
    assert "time to the latter's held-out F1 10.00x on the wall clock, 8.00x simulated (+25 %" in headline
    assert headline.endswith("the machine was busy: hub had less than the share of a core that was theirs")
    assert "Shares of a CPU core while training: hub 0.13 of 0.35; band 0.08 of 0.08." in lines


@pytest.mark.timeout(400)
def test_real_processes_and_the_simulated_fleet_learn_the_same_from_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "three.toml").write_text(FLEET)
    rate = {"full": 0.05}
    plan = Experiment(
        name="x",
        fleets=[str(tmp_path / "three.toml")],
        folds=[0],
        seeds=[0],
        rounds={"full": 4},
        epochs=0.2,
        model=Sizes(widths=[3], fusion=6, bins=2),
        reference="fedavg",
        methods={
            "fedavg": Method(strategy="fedavg", learning_rate=rate, clip=2.0),
            "relief": Method(strategy="cohort-only", learning_rate=rate, clip=2.0, until=0),
        },
    )
    headline = beside(plan, tmp_path / "out", lambda line: None)
    assert "on the wall clock" in headline
    rows = list(csv.DictReader((tmp_path / "out" / "points.csv").read_text().splitlines()))
    assert {(r["method"], r["clock"]) for r in rows} == {(m, c) for m in plan.methods for c in ("wall", "simulated")}
    # Full rounds of everybody leave nothing to the clock: both came to the same model, but for rounding.
    for method in plan.methods:
        wall, virtual = (
            {int(r["round"]): float(r["held_out"]) for r in rows if (r["method"], r["clock"]) == (method, clock)}
            for clock in ("wall", "simulated")
        )
        assert len(wall) == len(virtual) == 4
        assert wall == pytest.approx(virtual, abs=0.03)
    assert "The fleet as its processes said it is" in (tmp_path / "out" / "report.md").read_text()
