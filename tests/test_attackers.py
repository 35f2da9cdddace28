"""The attackers' table: who is hostile, what a row is, and how an interrupted table goes on."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.robust import Robust, Rule, Sliced, robust_fold
from tests.faults.attackers import RULES, table, verdict, written
from tests.faults.hostile import cohorts, drawn, worst

OWNED = st.dictionaries(
    st.sampled_from([f"d{n}" for n in range(30)]),
    st.sets(st.sampled_from(["torso", "arm", "leg"]), min_size=1).map(sorted),
    min_size=4,
)


@given(OWNED, st.sampled_from([0.1, 0.2, 0.3]), st.integers(0, 9))
def test_no_cohort_has_more_hostile_devices_than_its_share_and_none_could_be_added(
    owned: dict[str, list[str]], share: float, seed: int
) -> None:
    hostile = drawn(owned, share, seed, by="cohort")
    room = {b: round(share * len(devices)) - len(hostile & set(devices)) for b, devices in cohorts(owned).items()}
    assert min(room.values()) >= 0
    for device in set(owned) - hostile:
        assert min(room[block] for block in (*owned[device], "shared")) == 0


def test_a_draw_from_the_whole_fleet_can_give_a_small_cohort_away() -> None:
    owned = {f"d{n}": ["torso", "arm"] if n < 4 else ["arm"] for n in range(24)}
    shares = [worst(owned, drawn(owned, 0.3, seed, by="fleet")) for seed in range(40)]
    assert max(shares) > 0.5
    assert all(worst(owned, drawn(owned, 0.3, seed, by="cohort")) < 0.34 for seed in range(40))


def test_an_interrupted_table_goes_on_behind_its_last_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, ["attack", "rule"])
        out.writeheader()
        out.writerow({"attack": "flip", "rule": "krum"})
    whole = path.read_bytes()
    path.write_bytes(whole + b"reverse,me")
    assert written(path) == [{"attack": "flip", "rule": "krum"}]
    assert path.read_bytes() == whole
    assert written(tmp_path / "none.csv") == []


def test_the_verdict_fails_where_a_rule_does_no_better_than_the_mean() -> None:
    rows = [
        {"attack": "reverse", "share": "0.3", "rule": rule, "worst_cohort": "0.3", "in_subject": "0.5"}
        for rule in RULES
    ]
    assert not verdict(rows)[0]
    rows[0]["in_subject"] = "0.01"
    assert verdict(rows)[0]
    assert "| reverse 30% | 30% | 0.010 ± 0.000 | 0.500 ± 0.000 |" in table(rows, "in_subject")[-1]


def test_a_robust_centre_goes_as_far_as_the_mean_where_most_devices_are_slow() -> None:
    """Five of seven make one step, two make twenty: the centre is carried on for their mean, not for one step."""
    change = np.ones(8)
    cohort = [Sliced(f"d{n}", 10, s, lambda a, b, s=s: s * change[a:b]) for n, s in enumerate([1] * 5 + [20] * 2)]
    for rule in Rule:
        folded = robust_fold(Robust(rule, share=0.2), 8, cohort)
        assert folded is not None and np.allclose(folded.delta, 45 / 7)
