"""Every benchmark in its shortest form: its parts start and its rows can be shown. The figures mean nothing here."""

from __future__ import annotations

import importlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from models import Mode
from tests.bench import cells, names
from tests.bench_inference import UNITS
from tests.bench_lab import MLP
from tests.crew import Crew

# What each benchmark repeats, cut down. A new one has to be entered here.
SHORT: dict[str, dict[str, Any]] = {
    "cuda": {"STEPS": 2, "TURNS": 1},
    "inference": {"RUNS": 1, "SWAPS": 10, "MODES": (Mode.LORA,), "UNITS": UNITS[:1]},
    "lab": {"CASES": (("20 devices", MLP, 20, 32, 16, 1, 5.0),), "REPEATS": 1},
    "power": {"SECONDS": 0.5},
    "protocol": {"ROUNDS": 3, "PINGS": 5, "DEVICES": 2},
    "reading": {"TURNS": 1, "STARTS": 1, "BOUT_S": 4.0, "SEGMENTS": 5},
    "replay": {"SECONDS": 6.0},
    "round": {"ROUNDS": 9, "DEVICES": 2},
}


@pytest.mark.parametrize("name", names())
def test_a_benchmark_runs_and_its_rows_can_be_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"tests.bench_{name}")
    for constant, value in SHORT[name].items():
        monkeypatch.setattr(module, constant, value)
    rows = module.bench()
    assert rows
    assert all(len(cells(row)) == 5 for row in rows)
    json.dumps(rows)


def test_a_process_that_falls_ends_the_waiting_at_once_and_its_last_words_are_told(tmp_path: Path) -> None:
    fell = threading.Event()
    began = time.monotonic()
    with (
        pytest.raises(RuntimeError, match=r"d0 ended before its time:(.|\n)*IndexError"),
        Crew(tmp_path, fell.set) as crew,
    ):
        crew.start("d0", "tests.bench_device")  # without its arguments
        assert fell.wait(60)
        crew.check()
    assert time.monotonic() - began < 60


def test_ending_a_crew_is_no_fall(tmp_path: Path) -> None:
    fell = threading.Event()
    with Crew(tmp_path, fell.set) as crew:
        crew.start("idle", "http.server", "0", "--bind", "127.0.0.1")
        crew.check()
    assert not fell.is_set()
