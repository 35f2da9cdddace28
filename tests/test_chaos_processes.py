"""Ten faults on real processes: nothing committed is lost, nothing counts twice, and the fleet goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = int(os.environ.get("RELIEF_CHAOS_FAULTS", "10"))


@pytest.mark.timeout(60 + 30 * FAULTS)
def test_a_fleet_survives_kills_stops_and_pulled_cables(broker: object) -> None:
    command = [sys.executable, "-m", "tests.chaos", str(FAULTS), "--devices", "3", "--seed", "5"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith(f"OK: {FAULTS} faults, 3 devices")
