"""Bytes from strangers: the kept corpus, fresh mutations, and what hypothesis thinks of."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import CORPUS, pool_of
from tests.fuzz.mutate import mutated
from tests.fuzz.samples import samples
from tests.fuzz.targets import EFFORT, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_valid_samples_and_the_kept_corpus_pass(target: str) -> None:
    for data in pool_of(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), seed=st.integers(0, 2**32))
def test_any_bytes_and_any_mutation_pass(target: str, data: bytes, seed: int) -> None:
    TARGETS[target](data)
    TARGETS[target](mutated(random.Random(seed), samples(target)))


def test_a_run_of_many_inputs_ends_with_its_verdict() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "30000", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("OK: 30,0")


def test_the_samples_of_the_coordinator_really_commit_rounds() -> None:
    """Else the fuzzer would only ever knock at a closed door."""
    from tests.fuzz import targets

    for old in targets._fleets:
        old.close()
    targets._fleets.clear()
    for data in samples("coordinator")[1:]:
        TARGETS["coordinator"](data)
    assert targets._fleets[0].coordinator.core.round >= 3


def test_every_target_has_its_share_and_the_corpus_no_strangers() -> None:
    assert set(EFFORT) == set(TARGETS)
    assert {p.name for p in CORPUS.iterdir() if p.is_dir()} <= set(TARGETS)
