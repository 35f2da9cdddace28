"""The whole system as its users run it: the relief command, processes of their own, a real Mosquitto between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker_config.launcher import Broker
from tools.watch import Watch

DEVICES = {"hub": '["chest_acc", "ecg"]', "band": '["chest_acc"]'}


def relief(*arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    with (log or Path(os.devnull)).open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.cli", *arguments],
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def until(condition: Callable[[], bool], patience: float = 45.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def told(folder: Path, *arguments: str) -> str:
    """What a verb prints about this fleet."""
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", *arguments, "--config", str(folder / "fleet.toml")],
        capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip


def rounds(folder: Path) -> list[dict]:
    file = folder / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in map(json.loads, lines) if line["kind"] == "round"]


@pytest.fixture
def system(broker: Broker, fleet: str, tmp_path: Path) -> Iterator[tuple[Path, Callable[..., subprocess.Popen[bytes]]]]:
    """A configuration and a way to start parties of it; all of them are ended afterwards."""
    from sensors.synthetic import Synthetic

    names = [m.name for m in Synthetic().modalities]
    owned = {"hub": names, "band": names[:1]}
    text = f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n[coordinator]\nfolder = "run"\nexpect = 2\n'
    text += "margin = 30.0\n"  # a busy machine costs no device its round
    for name, modalities in owned.items():
        text += f'[[device]]\nid = "{name}"\nmodalities = {json.dumps(modalities)}\nstate = "state"\ntelemetry = 0\n'
        text += '[device.source]\nsubject = "1"\nspeed = inf\npart = [0.0, 0.2]\n'
    (tmp_path / "fleet.toml").write_text(text)
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        running.append(relief(*arguments, "--config", str(tmp_path / "fleet.toml"), log=tmp_path / "log"))
        return running[-1]

    yield tmp_path, start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.timeout(150)
def test_processes_train_rounds_survive_a_killed_coordinator_and_end_cleanly(
    system: tuple[Path, Callable[..., subprocess.Popen[bytes]]], broker: Broker, fleet: str
) -> None:
    folder, start = system
    devices = [start("device", "run", "--device", name) for name in ("hub", "band")]
    first = start("coordinator", "run")
    until(lambda: len(rounds(folder)) >= 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = rounds(folder)
    second = start("coordinator", "run")
    until(lambda: len(rounds(folder)) >= len(before) + 2)
    numbers = [line["round"] for line in rounds(folder)]
    assert numbers == sorted(set(numbers)), "no round is committed twice, none is lost"
    assert all(line["updates"] == 2 for line in rounds(folder))
    status = told(folder, "fleet", "status", "--json")
    assert set(json.loads(status)["devices"]) == {"hub", "band"}
    assert json.loads(status)["online"] is True
    for process in (*devices, second):
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert [process.wait(5) for process in (*devices, second)] == [0, 0, 0]
    assert time.monotonic() - began < 3.0
    assert "is not running; this is what it said last" in " ".join(told(folder, "fleet", "status").split())
    said = [json.loads(line)["event"] for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    assert "devices: 2 of 2 are there" in said
    assert sum(line.startswith(f"round {numbers[-1]}: 2 of 2 devices, ") for line in said) == 1


@pytest.mark.timeout(150)
def test_an_operator_pauses_and_resumes_the_fleet(
    system: tuple[Path, Callable[..., subprocess.Popen[bytes]]], broker: Broker, fleet: str
) -> None:
    from protocol.config import BrokerConfig
    from protocol.mqtt import MqttTransport

    folder, start = system
    for name in ("hub", "band"):
        start("device", "run", "--device", name)
    start("coordinator", "run")
    until(lambda: len(rounds(folder)) >= 1)
    assert start("fleet", "pause").wait(30) == 0
    with Watch(fleet, MqttTransport(BrokerConfig(port=broker.port), "operator-test-watch")) as watch:
        until(lambda: (watch.next(5.0) or {}).get("phase") == "gathering")
        held = len(rounds(folder))
        assert watch.latest is not None
        assert watch.latest.fields["paused"]
        assert start("fleet", "resume").wait(30) == 0
        until(lambda: len(rounds(folder)) > held)
