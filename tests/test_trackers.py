"""Experiment trackers: every number once, read back by their own libraries, and never in the way of a round."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from coordinator.tracking import TrackerBehind, Tracking
from tests.synthetic_fleet import SyntheticFleet


class Kept:
    """Keeps what it is given; holds it up until `open`, and fails while `broken`."""

    def __init__(self) -> None:
        self.numbers: list[tuple[Mapping[str, float], int]] = []
        self.open, self.asked, self.broken, self.closed = threading.Event(), threading.Event(), False, False
        self.open.set()

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self.asked.set()
        self.open.wait(30)
        if self.broken:
            raise ConnectionError("no route")
        self.numbers.append((numbers, step))

    def close(self) -> None:
        self.closed = True


def tell(tracking: Tracking, fleet: SyntheticFleet, rounds: int) -> None:
    for _ in range(rounds):
        fleet.open()
        fleet.finish()
        tracking.take(fleet.round, fleet.summary().fields)


def wait(until: object) -> None:
    end = time.monotonic() + 10
    while not until() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.01)
    assert until()  # type: ignore[operator]


def test_a_tracker_gets_every_round_and_evaluation_once() -> None:
    fleet, kept = SyntheticFleet(3), Kept()
    tracking = Tracking(kept)
    for _ in range(3):
        tell(tracking, fleet, 1)
        tracking.take(fleet.round, fleet.summary().fields)  # summaries repeat themselves
    tracking.close()
    losses = [(numbers["round/loss"], step) for numbers, step in kept.numbers if "round/loss" in numbers]
    assert losses == [(1.0, 1), (0.5, 2), (1 / 3, 3)]
    assert [step for numbers, step in kept.numbers if "f1/held_out" in numbers] == [1, 2, 3]
    assert kept.closed


def test_a_slow_tracker_holds_no_round_up_and_what_it_misses_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fleet, kept = SyntheticFleet(3), Kept()
    kept.open.clear()
    tracking = Tracking(kept, waiting=4)
    tell(tracking, fleet, 1)
    assert kept.asked.wait(10)
    began = time.monotonic()
    with pytest.raises(TrackerBehind, match="Kept is too slow; rounds and evaluations left out so far: 1"):
        tell(tracking, fleet, 2)  # with the first round six things: one is being written, four wait
    assert time.monotonic() - began < 1
    kept.open.set()
    wait(lambda: len(kept.numbers) == 5)
    wait(lambda: tell(tracking, fleet, 1) is None)  # it has caught up: nothing is raised
    tracking.close()
    assert "rounds and evaluations that Kept lacks: 1; metrics.jsonl has them" in caplog.text


def test_a_tracker_that_fails_is_told_of_until_it_works_again() -> None:
    fleet, kept = SyntheticFleet(3), Kept()
    kept.broken = True
    tracking = Tracking(kept)
    tell(tracking, fleet, 1)
    wait(lambda: tracking.dropped == 2)
    with pytest.raises(TrackerBehind, match="ConnectionError: no route"):
        tracking.take(fleet.round, fleet.summary().fields)
    kept.broken = False
    with pytest.raises(TrackerBehind):
        tell(tracking, fleet, 1)
    wait(lambda: len(kept.numbers) == 2)
    tell(tracking, fleet, 1)
    tracking.close()


def run(code: str, *arguments: object) -> str:
    """In a process of its own: these libraries warn and leave threads."""
    told = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=90, check=False
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def test_tensorboard_files_hold_the_rounds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    code = (
        "import sys; from pathlib import Path\n"
        "from coordinator.trackers import TensorBoard\n"
        "t = TensorBoard(Path(sys.argv[1])); t.write({'round/loss': 0.5}, 1); t.close()\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "e = EventAccumulator(sys.argv[1]); e.Reload(); print(e.Scalars('round/loss')[0].value)\n"
    )
    assert run(code, tmp_path) == "0.5"


needs_mlflow = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import mlflow"], capture_output=True, check=False).returncode != 0,
    reason="the extra mlflow is not installed",
)


@needs_mlflow
def test_an_mlflow_run_in_a_folder_holds_the_rounds(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from coordinator.trackers import MLflow\n"
        "from coordinator.tracking import Tracking\n"
        "from tests.synthetic_fleet import SyntheticFleet\n"
        "fleet, tracking = SyntheticFleet(3), Tracking(MLflow(sys.argv[1], 'first'))\n"
        "for _ in range(3):\n"
        "    fleet.open(); fleet.finish(); tracking.take(fleet.round, fleet.summary().fields)\n"
        "tracking.close(60)\n"
        "from mlflow.tracking import MlflowClient\n"
        "client = MlflowClient(tracking_uri=sys.argv[1])\n"
        "(run,) = client.search_runs([client.get_experiment_by_name('relief').experiment_id])\n"
        "losses = client.get_metric_history(run.info.run_id, 'round/loss')\n"
        "print(run.info.run_name, run.info.status, [(m.step, m.value) for m in losses], len(run.data.metrics))\n"
    )
    told = run(code, f"file:{tmp_path / 'mlruns'}")
    assert told == "first FINISHED [(1, 1.0), (2, 0.5), (3, 0.3333333333333333)] 16"


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@needs_mlflow
def test_an_mlflow_server_that_never_answers_holds_up_neither_rounds_nor_the_end(deaf: int) -> None:
    code = (
        "import sys, time\n"
        "from coordinator.trackers import MLflow\n"
        "from coordinator.tracking import TrackerBehind, Tracking\n"
        "from tests.synthetic_fleet import SyntheticFleet\n"
        "fleet, tracker = SyntheticFleet(3), MLflow(sys.argv[1], 'first')\n"
        "began = time.monotonic()\n"
        "tracking, said = Tracking(tracker, waiting=3), ''\n"
        "for _ in range(5):\n"
        "    fleet.open(); fleet.finish()\n"
        "    try: tracking.take(fleet.round, fleet.summary().fields)\n"
        "    except TrackerBehind as behind: said = str(behind)\n"
        "tracking.close(0.5)\n"
        "print(said, '|', time.monotonic() - began < 5)\n"
    )
    said, _, quick = run(code, f"http://127.0.0.1:{deaf}").partition(" | ")
    assert said.startswith("MLflow is too slow; ")
    assert quick == "True"


@needs_mlflow
def test_an_address_that_mlflow_does_not_know_is_refused_with_what_is_allowed() -> None:
    code = (
        "from coordinator.trackers import MLflow\n"
        "try: MLflow('nonsense://x', 'first')\n"
        "except ValueError as error: print(error)\n"
    )
    assert run(code) == "--mlflow nonsense://x: give a server as http://HOST:PORT or a folder as file:/PATH"
