"""What tests share: one real Mosquitto, on which every test keeps to a fleet of its own."""

from __future__ import annotations

import os

# Models here are tiny: threads of torch and of the linear algebra library would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from broker_config.launcher import Broker, BrokerFailed

_fleets = itertools.count()

# How long an example takes says more about who else uses the machine than about the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A Mosquitto on loopback for the whole run; tests that hurt a broker start their own."""
    try:
        running = Broker().start()
    except BrokerFailed as error:
        pytest.skip(f"Mosquitto does not run here: {error}")
    yield running
    running.stop()


@pytest.fixture
def fleet() -> str:
    """A fleet's name that no other test uses."""
    return f"fleet{next(_fleets)}"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, to be filled; `mount -o remount,size=` gives it space."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
