"""What the demo says of the time that is left, from the first second on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tools.demo.left import learning, starting


def seconds(line: str) -> float:
    found = re.search(r"about (\d+) s left", line)
    assert found, line
    return float(found[1])


def summary(ready: int, *, round: int = 1, rounds: int = 40, predicted: float = 0.0) -> dict[str, Any]:
    states = ["ready"] * ready + ["idle"] * (8 - ready)
    devices = {str(n): {"state": state, "predicted": predicted} for n, state in enumerate(states)}
    return {"round": round, "rounds": rounds, "devices": devices}


def test_there_is_a_time_left_before_anything_was_heard_and_it_never_reaches_nothing() -> None:
    lines = [starting("RELIEF", None, 9, 8, float(elapsed)) for elapsed in range(0, 90)]
    assert min(map(seconds, lines)) >= 1
    assert seconds(lines[0]) > 1
    assert lines[0].startswith("RELIEF: starting coordinator and devices")


def test_it_falls_while_devices_become_ready() -> None:
    lines = [starting("RELIEF", summary(ready), 9, 8, 15.0 + ready) for ready in range(9)]
    assert [seconds(line) for line in lines] == sorted(map(seconds, lines), reverse=True)
    assert "3 of 8 devices are ready" in lines[3]


@pytest.mark.parametrize(
    ("now", "elapsed", "left"),
    [
        (summary(8, predicted=1.5), 0.0, 60.0),  # by what the devices predict, until a round is done
        (summary(8, round=11), 20.0, 60.0),  # ten of forty took 20 s
        (summary(8, round=3, rounds=0), 20.0, 55.0),  # by the clock's limit
        (summary(8, round=41), 80.0, 0.0),
    ],
)
def test_while_it_learns_the_time_left_is_by_rounds_or_by_the_clock(
    now: dict[str, Any], elapsed: float, left: float
) -> None:
    assert seconds(learning(now, elapsed, 75.0)) == left
