"""What the summary carries of the past, and the FedAvg estimate beside it."""

from __future__ import annotations

import json
from pathlib import Path

from coordinator.estimate import FedAvgEstimate
from coordinator.history import TRAIL, History, record
from coordinator.registry import Registry
from coordinator.strategies.base import Settings
from models.cost import block_costs
from protocol.messages import Status
from tests.worlds import spec


def born(registry: Registry, device: str, *modalities: str, watts: float = 2.0) -> None:
    channels = {m: registry.spec.input(m).channels for m in modalities}
    registry.arrive(
        device, Status(online=True, boot="b", modalities=channels, windows=40, can_train=True, watts=watts), 0.0
    )


def test_fedavg_would_send_the_whole_model_from_every_device() -> None:
    of = spec()
    registry, whole = Registry(of), sum(c.bytes for c in block_costs(of).values())
    born(registry, "a", *of.names)
    born(registry, "b", of.names[0])
    seen = FedAvgEstimate(of, Settings()).round(registry, ["a", "b", "unknown"])
    assert (seen.bytes_up, seen.bytes_down) == (2 * whole, whole)
    assert seen.seconds > 0


def test_a_device_that_owns_one_modality_pays_for_all_of_them_under_fedavg() -> None:
    of = spec()
    registry = Registry(of)
    born(registry, "a", *of.names)
    born(registry, "b", of.names[0])
    estimate = FedAvgEstimate(of, Settings())
    assert estimate.round(registry, ["a"]) == estimate.round(registry, ["b"])


def test_joules_are_estimated_for_devices_whose_power_is_known_only() -> None:
    of = spec()
    registry = Registry(of)
    born(registry, "known", *of.names, watts=2.0)
    born(registry, "unknown", *of.names, watts=0.0)
    estimate = FedAvgEstimate(of, Settings())
    assert estimate.round(registry, ["unknown"]).joules == 0.0
    assert estimate.round(registry, ["known", "unknown"]).joules == estimate.round(registry, ["known"]).joules > 0.0


def test_the_estimate_follows_a_device_that_is_born_again_with_other_figures() -> None:
    of = spec()
    registry = Registry(of)
    born(registry, "a", *of.names, watts=2.0)
    estimate = FedAvgEstimate(of, Settings())
    before = estimate.round(registry, ["a"]).joules
    born(registry, "a", *of.names, watts=6.0)
    assert estimate.round(registry, ["a"]).joules > 2.9 * before


def test_the_trail_keeps_the_latest_rounds_in_brief(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    for n in range(1, TRAIL + 6):
        history.round(record(n, n - 1.0, float(n), 2, [], {}, 10, 20))
        history.score(n, float(n), {"held_out": 0.5})
    history.close()
    assert [r["round"] for r in history.trail] == list(range(6, TRAIL + 6))
    assert "devices" not in history.trail[0]
    assert history.scored[-1] == {"round": TRAIL + 5, "at": TRAIL + 5.0, "held_out": 0.5}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2 * (TRAIL + 5)


def test_the_clock_of_a_record_goes_on_where_an_earlier_life_ended(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    assert history.until == 0.0
    for n in range(1, 400):
        history.round(record(n, 10.0 * n - 10.0, 10.0 * n, 2, [], {}, 10, 20))
        history.score(n, 10.0 * n, {"held_out": 0.5})
    history.score(390, 3900.0, {"held_out": 0.5})  # an evaluation that took its time
    history.close()
    assert History(tmp_path / "metrics.jsonl").until == 3990.0


def test_the_clock_is_found_behind_a_round_of_a_large_fleet(tmp_path: Path) -> None:
    line = {"kind": "round", "ended": 12.5, "devices": {f"device-{n}": {"seconds": 1.0} for n in range(10_000)}}
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 3 + json.dumps(line) + "\n")
    assert History(tmp_path / "metrics.jsonl").until == 12.5
