"""Bad days on virtual time leave every invariant standing, replay exactly, and find the bugs that were planted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.faults import planted

ROOT = Path(__file__).parent.parent
SEEDS = int(os.environ.get("RELIEF_FAULT_SEEDS", "500"))


def simulate(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.timeout(600)
def test_no_seed_breaks_an_invariant() -> None:
    done = simulate(str(SEEDS), timeout=580)
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    seeds, rounds, faults = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:seeds|rounds|faults)", last))
    assert seeds == SEEDS and rounds >= 10 * SEEDS and faults >= 20 * SEEDS


def test_a_seed_replays_exactly() -> None:
    first, second = (simulate("--seed", "7", timeout=60).stdout for _ in range(2))
    assert "fault 20" in first
    assert first == second


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", planted.names())
def test_a_planted_bug_is_found_within_500_seeds(bug: str) -> None:
    done = simulate("500", "--bug", bug, timeout=290)
    assert done.returncode == 1, f"{bug} was not found:\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
    assert "1 broken" in done.stdout.splitlines()[-1]
    assert "  again: python -m tests.faults --seed" in done.stdout


@pytest.mark.parametrize("bug", planted.names())
def test_a_planted_bug_fits_the_present_source(bug: str) -> None:
    bug_module = import_module(f"tests.faults.bugs.{bug}")
    source = (ROOT / (bug_module.MODULE.replace(".", "/") + ".py")).read_text()
    assert planted.changed(source, bug, bug_module.OLD, bug_module.NEW) != source


def test_text_that_has_moved_on_is_an_error() -> None:
    with pytest.raises(LookupError, match="0 times"):
        planted.changed("a = 1", "some bug", "b = 1", "b = 2")
