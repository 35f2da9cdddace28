"""The examples run: a sensor, a model and a strategy of another package, found by their entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).parent.parent / "examples"

# The parties of a fleet as threads of one process, over the in-memory transport.
RUN = """
import sys, time
from pathlib import Path
from tools.demo.threads import Threads
with Threads(Path("logs")) as parties:
    for name in ("left", "both"):
        parties.device(name, Path("fleet.toml"))
    parties.coordinator("coordinator", Path("fleet.toml"))
    end = time.monotonic() + 60
    while not parties.ended("coordinator"):
        assert parties.fallen() is None and time.monotonic() < end
        time.sleep(0.05)
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the examples' entry points are found, as their pyproject.toml names them."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "relief_examples-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"]
    text = "\n".join(f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in own.items()) for group, own in groups.items())
    (info / "entry_points.txt").write_text(text + "\n")
    path = os.pathsep.join((str(EXAMPLES), str(tmp_path / "site"), str(EXAMPLES.parent)))
    return {**os.environ, "PYTHONPATH": path}


def test_a_fleet_of_own_sensor_model_and_strategy_learns(installed: dict[str, str], tmp_path: Path) -> None:
    text = (EXAMPLES / "fleet.toml").read_text()
    (tmp_path / "fleet.toml").write_text(text + '\n[broker]\ntransport = "memory"\n')
    told = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=100
    )
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/examples/metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    assert [r["round"] for r in rounds] == [1, 2, 3, 4, 5]
    assert rounds[-1]["trainers"] == {"left_foot": 2, "right_foot": 1, "shared": 2}
    assert [line for line in lines if line["kind"] == "scores"][-1]["held_out"] > 0.9


def test_a_live_sensor_of_another_package_is_a_kind_of_its_own(installed: dict[str, str]) -> None:
    code = (
        "from device_runtime.sensors_config import SensorConfig, maker\n"
        "from protocol.config import BrokerConfig\n"
        "c = SensorConfig(kind='metronome', where='120', modalities={'beat': ('pulse',)}, rate_hz=20)\n"
        "s = maker(c, BrokerConfig(), 'd')(); s.open(); piece = s.read(2.0); s.close()\n"
        "print(piece.streams['beat'].shape, s.read(1.0), s.ended)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True, timeout=60)
    assert told.stdout.strip() == "(5, 1) None True", told.stderr


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("from sensors.locate import find; find('nothing')", "treadmill"),
        ("from coordinator.strategies import strategy; strategy('nothing')", "patient"),
        (
            "from tools.configuration import ModelConfig, dataset; ModelConfig(name='x').spec(dataset('synthetic'))",
            "flat",
        ),
        (
            "from device_runtime.sensors_config import SensorConfig\n"
            "SensorConfig(kind='x', where='y', modalities={'m': ('a',)})",
            "metronome",
        ),
    ],
)
def test_a_name_that_nobody_knows_is_answered_with_what_is_installed(
    installed: dict[str, str], code: str, named: str
) -> None:
    told = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True, timeout=60)
    assert told.returncode != 0
    assert named in told.stderr.splitlines()[-1] + told.stderr.splitlines()[-2]


def test_every_example_is_one_short_file() -> None:
    for name in ("own_sensor.py", "own_model.py", "own_strategy.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) < 100
