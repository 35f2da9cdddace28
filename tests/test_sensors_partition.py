"""What a partition promises: the same anywhere, nothing held twice, tiers own what they should."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.partition import How, Tier, partition
from sensors.windows import Windows, cut
from tests.test_sensors_windows import Made

TIERS = (Tier("hub", 2, (("clock", "noise"),)), Tier("band", 3, (("clock",), ("noise",))))


def windows(overlap: float = 0.5, subjects: str = "abcdef") -> Windows:
    made = Made({s: [[0] * 200 + [1] * 100 + [2] * 300] for s in subjects})
    return cut(made.all(), made, overlap=overlap)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["contiguous", "dirichlet", "subject"]), st.sampled_from([0.0, 0.5]))
@settings(deadline=None)
def test_no_sample_is_held_by_two_devices(seed: int, how: How, overlap: float) -> None:
    all_windows = windows(overlap)
    seen: set[tuple[str, float]] = set()
    for holding in partition(all_windows, TIERS, how, seed=seed, alpha=0.3):
        own = all_windows.take(holding.rows)
        assert {own.subjects[s] for s in own.subject} <= {holding.subject}
        mine = {(holding.subject, t) for x in own.x["clock"] for t in x[0].tolist()}
        assert not mine & seen
        seen |= mine


def test_without_overlap_every_window_of_the_subjects_in_use_is_given_away() -> None:
    all_windows = windows(0.0, "ab")
    for how in ("contiguous", "dirichlet"):
        held = np.concatenate([h.rows for h in partition(all_windows, TIERS, how)])  # type: ignore[arg-type]
        assert sorted(held.tolist()) == list(range(len(all_windows)))


def test_contiguous_shares_are_even_and_dirichlet_ones_are_skewed() -> None:
    all_windows = windows(0.0, "a")
    one = (Tier("d", 4, (("clock",),)),)
    even = [np.bincount(all_windows.y[h.rows], minlength=3) for h in partition(all_windows, one)]
    assert np.ptp(even, axis=0).max() <= 1
    skewed = [
        np.bincount(all_windows.y[h.rows], minlength=3) for h in partition(all_windows, one, "dirichlet", alpha=0.1)
    ]
    assert np.ptp(skewed, axis=0).max() >= 10
    mild = [
        np.bincount(all_windows.y[h.rows], minlength=3) for h in partition(all_windows, one, "dirichlet", alpha=1e4)
    ]
    assert np.ptp(mild, axis=0).max() <= 2


def test_tiers_get_their_sensors_and_devices_their_names() -> None:
    holdings = partition(windows(), TIERS)
    assert [h.device for h in holdings] == ["hub-1", "hub-2", "band-1", "band-2", "band-3"]
    assert [h.modalities for h in holdings] == [("clock", "noise")] * 2 + [("clock",), ("noise",), ("clock",)]
    assert list(holdings[2].of(windows()).x) == ["clock"]
    assert len({h.subject for h in holdings}) == 5


def test_one_device_a_subject_holds_all_of_it() -> None:
    all_windows = windows(subjects="abcde")
    for holding in partition(all_windows, TIERS, "subject", seed=7):
        assert len(holding.rows) == (all_windows.subject == all_windows.subjects.index(holding.subject)).sum()


def test_the_same_seed_gives_this_very_fleet_on_any_machine() -> None:
    holdings = partition(windows(), TIERS, "dirichlet", seed=5)
    about = "; ".join(f"{h.device} {h.subject} {zlib.crc32(h.rows.astype('<i8').tobytes())}" for h in holdings)
    assert about == EXPECTED
    assert partition(windows(), TIERS, "dirichlet", seed=6)[0].rows.tolist() != holdings[0].rows.tolist()


EXPECTED = "hub-1 f 4211708660; hub-2 c 826860915; band-1 e 2937597170; band-2 b 2951689643; band-3 a 106351989"


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="5 devices for 2 subjects"):
        partition(windows(subjects="ab"), TIERS, "subject")
    with pytest.raises(ValueError, match="tier x: no window has modality 'ecg'; there are clock, noise"):
        partition(windows(), [Tier("x", 1, (("ecg",),))])
    with pytest.raises(ValueError, match="alpha"):
        partition(windows(), TIERS, "dirichlet", alpha=0.0)
    with pytest.raises(ValueError, match="need at least one"):
        partition(windows().take(np.empty(0, np.int64)), TIERS)
    with pytest.raises(ValueError, match="at least one modality"):
        partition(windows(), [Tier("x", 1, ((),))])
