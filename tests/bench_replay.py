"""How late `relief replay` is at the recorded pace, beside a loop that only sleeps, in the same seconds.

The command plays made-up MHEALTH recordings, eight sensors five times a second, to a real Mosquitto. The publisher says
itself how late its pieces were; a subscriber compares the time in each message with its own clock.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from broker_config.launcher import Broker
from sensors.originals import write_mhealth

SECONDS = 60.0  # 300 pieces, 2,400 messages
PERIOD_S = 0.2  # of the pieces, the command's own choice
PROMISED_MS = 5.0  # at 99 %; where other work delays everybody, twice what a loop is late that only sleeps


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, floor (name, value), promise, ok."""
    with tempfile.TemporaryDirectory() as folder, Broker() as broker:
        write_mhealth(Path(folder) / "mhealth", subjects=1, bout_s=6.0, bouts=1)
        environment = os.environ | {"RELIEF_DATA": folder, "RELIEF_CACHE": f"{folder}/cache"}
        listening, sleeping = _witness("listen", str(broker.port)), _witness("sleep", str(PERIOD_S))
        try:
            said = _replay(broker, environment)
        finally:
            arrived, slept = (json.loads(each.communicate(timeout=30)[0]) for each in (listening, sleeping))
    found = re.search(r"late by ([\d.]+) ms in the middle, ([\d.]+) ms at 99 %", said)
    if found is None:
        raise RuntimeError(f"the replay does not say how late it was: {said}")
    middle, late = map(float, found.groups())
    floor, floor_99 = (1e3 * within(slept, share) for share in (0.5, 0.99))
    at_other_end, at_other_end_99 = (1e3 * within(arrived, share) for share in (0.5, 0.99))
    rows = [
        ("late at the publisher, median", middle, floor, None),
        ("late at the publisher, 99 of 100", late, floor_99, max(PROMISED_MS, 2 * floor_99)),
        ("late at a subscriber, median", at_other_end, floor, None),
        ("late at a subscriber, 99 of 100", at_other_end_99, floor_99, None),
    ]
    return [
        {
            "name": f"replay at 1x, {name}",
            "value": round(value, 2),
            "unit": "ms",
            "floor": {"name": "sleeping alone", "value": round(least, 2)},
            "promise": None if promise is None else round(promise, 2),
        }
        | ({} if promise is None else {"ok": value <= promise})
        for name, value, least, promise in rows
    ]


def within(late: list[float], share: float) -> float:
    """Seconds within which that share of all was on time."""
    return statistics.quantiles(late, n=100, method="inclusive")[round(100 * share) - 1]


def _replay(broker: Broker, environment: dict[str, str]) -> str:
    """The last line that the command prints, at its end or after SECONDS."""
    command = [sys.executable, "-m", "tools.cli", "replay", "mhealth", "--port", str(broker.port), "--speed", "1"]
    running = subprocess.Popen(
        [*command, "--prefix", "replayed"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said, complained = running.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)
        said, complained = running.communicate(timeout=30)
    if running.returncode:
        raise RuntimeError(f"relief replay ended with {running.returncode}: {complained.strip()[-500:]}")
    return said.strip().splitlines()[-1]


def _witness(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.replay_witness", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"the witness that should {arguments[0]} did not start")
    return process


if __name__ == "__main__":
    for row in bench():
        print(f"{row['name']:<48} {row['value']:>8} ms   {row['floor']['name']} {row['floor']['value']}")
