"""The quick form of `make soak`: one bad day for eight device processes over Mosquitto."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker_config.launcher import Broker
from sensors.locate import find
from tests.soak import QUICK, run
from tools.demo.plan import plan


@pytest.mark.timeout(420)
def test_after_silence_late_labels_kills_and_a_cut_everyone_is_back_and_nothing_counted_twice(
    tmp_path: Path, broker: Broker
) -> None:
    name = "dsads" if os.environ.get("RELIEF_DATA") else "synthetic"
    fleet = plan(find(name), name)
    outcome = run(QUICK, fleet, tmp_path / "run", seed=0, faults=True)
    assert outcome.wrong == [] and len(outcome.faults) == 4
    assert outcome.last == {d.id for d in fleet.devices}
    assert outcome.counted > 3 * len(fleet.devices)
    assert outcome.in_subject > 0.3  # 19 or 6 classes by chance: 0.05 or 0.17
