"""What the demo says in the end, in every way that the two runs can go."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tools.demo.plan import DemoDevice, Plan
from tools.demo.report import Run, show

NAMES = ("in_subject", "held_out", "rare_owners", "rare_only", "rare_drop")
PLAN = Plan("synthetic", "", (DemoDevice("hub-1", "hub", ("torso",), "1", (0.0, 1.0)),), ("2",), "torso")


def run(method: str, *held_out: float, every: float = 10.0) -> Run:
    """Two rounds a score, `every` seconds apart; without scores, two rounds that nobody evaluated."""
    seconds = [every / 2 * n for n in range(1, 2 * max(1, len(held_out)) + 1)]
    rounds = [
        {"began": at - every / 2, "ended": at, "bytes_up": 1000, "bytes_down": 1000, "devices": {}} for at in seconds
    ]
    scores = [{**dict.fromkeys(NAMES, score), "at": every * n} for n, score in enumerate(held_out, 1)]
    return Run(method, rounds, scores)


def told(relief: Run, fedavg: Run) -> tuple[str, str]:
    """The headline, and all that was printed above it."""
    console = Console(file=io.StringIO(), width=200)
    headline = show(console, PLAN, relief, fedavg, {})
    return headline, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("relief", "fedavg", "expected"),
    [
        (
            run("RELIEF", 0.6, 0.7, every=5.0),
            run("FedAvg", 0.3, 0.6, 0.6),
            "demo: RELIEF reached FedAvg's held-out F1 of 0.500 4.0 x as fast, on the wall clock",
        ),
        (
            run("RELIEF", 0.1, 0.2, every=5.0),
            run("FedAvg", 0.3, 0.6, 0.6),
            "demo: RELIEF did not reach FedAvg's held-out F1 of 0.500 in its 4 rounds, 10 s on the wall clock",
        ),
        (
            run("RELIEF"),
            run("FedAvg", 0.5),
            "demo: RELIEF did not reach FedAvg's held-out F1 of 0.500 in its 2 rounds, 10 s on the wall clock",
        ),
        (
            run("RELIEF", 0.6),
            run("FedAvg"),
            "demo: FedAvg was not evaluated in its 2 rounds, so there is no score to compare with",
        ),
    ],
    ids=["reached", "not reached", "never evaluated", "nothing to reach"],
)
def test_the_headline_is_a_sentence_however_it_went(relief: Run, fedavg: Run, expected: str) -> None:
    assert told(relief, fedavg)[0] == expected


def test_what_was_not_evaluated_has_no_score_in_the_table_rather_than_a_zero() -> None:
    table = told(run("RELIEF", 0.6), run("FedAvg"))[1]
    assert "0.600" in table
    assert "0.000" not in table and "points" not in table
    assert "seconds to RELIEF's held-out 0.600" in table and "seconds to FedAvg's" not in table
