"""Fleets as files, and worlds: who holds which windows. Nobody shares a window, nothing of a test leaks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from sensors.locate import Found
from sensors.synthetic import Synthetic
from tools.lab import world as module
from tools.lab.fleet import Fleet, FleetError, Tier, fleet, fleets
from tools.lab.world import NoData, world

needs_recordings = pytest.mark.skipif("RELIEF_DATA" not in os.environ, reason="RELIEF_DATA does not say where DSADS is")


def small(**changes: object) -> Fleet:
    tiers = [
        Tier(name="rich", devices=2, modalities=["*"], speed=1.0, share=3.0),
        Tier(name="poor", devices=8, modalities=[["ecg", "heart_rate"], ["wrist_*"]], speed=0.1),
    ]
    return Fleet.model_validate({"name": "small", "dataset": "synthetic", "tier": tiers, **changes})


def test_a_tier_cycles_through_its_ownerships_in_the_order_of_the_data_set() -> None:
    tier = small().tier[1]
    known = ("chest_acc", "wrist_acc", "wrist_gyro", "ecg", "heart_rate")
    assert [tier.owned(k, known) for k in range(3)] == [
        ("ecg", "heart_rate"),
        ("wrist_acc", "wrist_gyro"),
        ("ecg", "heart_rate"),
    ]


def test_a_pattern_that_fits_no_modality_is_refused_by_name() -> None:
    with pytest.raises(FleetError, match="tier poor: no modality is called 'ecg'; there are chest_acc"):
        small().tier[1].owned(0, ("chest_acc",))


def test_an_impossible_entry_of_a_fleet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('dataset = "dsads"\n[[tier]]\nname = "a"\ndevices = 0\nmodalities = ["*"]\nspeed = 1.0\n')
    with pytest.raises(FleetError, match=r"bad.toml: tier.0.devices"):
        fleet(path)
    with pytest.raises(FleetError, match="those that come along: balanced, coupled"):
        fleet("nowhere")


def test_devices_share_no_window_and_hold_all_of_them_by_their_weights() -> None:
    w = world(small(), 0, 0)
    rows = np.concatenate([d.windows for d in w.devices])
    assert sorted(rows) == list(range(len(w.train)))
    assert len({d.subject for d in w.devices}) == 6
    for rich in w.devices[:2]:
        beside = [d for d in w.devices if d.subject == rich.subject and d.tier == "poor"]
        for poor in beside:
            assert len(rich.windows) == pytest.approx(3 * len(poor.windows), rel=0.1)


def test_every_device_wears_one_subject_and_held_out_subjects_are_worn_by_none() -> None:
    w = world(small(), 1, 0)
    for device in w.devices:
        assert {w.train.subjects[s] for s in w.train.subject[device.windows]} == {device.subject}
    assert not {d.subject for d in w.devices} & {"3", "4"}


def test_owners_windows_decide_the_scaling_so_each_channel_is_centred_over_them() -> None:
    w = world(small(), 0, 0)
    owners = np.concatenate([d.windows for d in w.devices if "ecg" in d.owned])
    x = w.train.x["ecg"][owners]
    np.testing.assert_allclose(x.mean(axis=(0, 2)), 0.0, atol=1e-3)
    np.testing.assert_allclose(x.std(axis=(0, 2)), 1.0, atol=1e-3)


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    a, b, c = (world(small(), 0, seed) for seed in (0, 0, 1))
    assert [d.windows.tolist() for d in a.devices] == [d.windows.tolist() for d in b.devices]
    assert [d.windows.tolist() for d in a.devices] != [d.windows.tolist() for d in c.devices]


def test_a_tuning_world_never_sees_the_folds_held_out_subjects() -> None:
    reported, tuning = world(small(), 0, 0), world(small(), 0, 0, tuning=True)
    outside = set(reported.judges["test"]._held_out.subject)
    assert outside == {"1", "2"}
    seen = {d.subject for d in tuning.devices}
    for judge in tuning.judges.values():
        seen |= set(judge._held_out.subject) | set(judge._test.subject)
    assert not seen & outside


def test_public_subjects_are_in_nobodys_hands() -> None:
    w = world(small(), 0, 0, public=1)
    worn = {d.subject for d in w.devices}
    public = {w.public.subjects[s] for s in w.public.subject}
    assert public and not public & worn


def test_a_fleet_that_is_too_large_for_its_recordings_is_refused() -> None:
    many = Tier(name="many", devices=3000, modalities=["*"], speed=1.0)
    with pytest.raises(ValueError, match="too few windows for 3000 devices"):
        world(small(tier=[many]), 0, 0)


def test_missing_recordings_are_an_error_not_a_silent_replacement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RELIEF_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    module._windows.cache_clear()
    with pytest.raises(NoData, match=r"dsads: no recordings in .*; `relief data fetch dsads` gets them$"):
        world(small(dataset="dsads"), 0, 0)


def test_a_set_of_another_package_is_as_good_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find", lambda name: Found(Synthetic(), None, "mine: from a package"))
    module._windows.cache_clear()
    assert world(small(dataset="mine"), 0, 0).devices
    module._windows.cache_clear()


def test_a_fold_that_the_set_does_not_have_is_none_of_the_others() -> None:
    last = len(Synthetic().subjects()) // 2 - 1
    assert world(small(), last, 0).held_out != world(small(), 0, 0).held_out
    with pytest.raises(ValueError, match=rf"no fold {last + 1}; .* --folds {last + 1}`"):
        world(small(), last + 1, 0)


@needs_recordings
@pytest.mark.parametrize("name", fleets())
def test_every_fleet_that_comes_along_can_be_peopled_or_says_what_is_missing(name: str) -> None:
    try:
        w = world(fleet(name), 0, 0)
    except (NoData, FleetError):
        pytest.skip(f"the whole recordings of fleet {name} are not at hand")
    assert len(w.devices) == w.fleet.devices
    assert all(len(d.windows) and d.owned for d in w.devices)


@needs_recordings
def test_in_the_coupled_fleet_only_the_four_fast_devices_own_the_torso() -> None:
    w = world(fleet("coupled"), 0, 0)
    assert [d.tier for d in w.devices if "torso" in d.owned] == ["hub"] * 4
    assert w.judges["test"].rare == "torso"
    assert sorted({d.flops for d in w.devices}) == [1e8, 3e8, 1e9]
