"""docs/broker.md, followed as a reader would: its commands, one after the other, end in a running fleet."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker_config.launcher import Broker
from tests.raw_client import free_port

REPOSITORY = Path(__file__).parent.parent
GUIDE = (REPOSITORY / "docs" / "broker.md").read_text()


def _commands() -> list[str]:
    section = GUIDE.partition("## From a bare host to a running fleet")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return block[1].replace("\\\n", " ").strip().splitlines()


def test_it_takes_fewer_than_ten_commands() -> None:
    assert len(_commands()) < 10


@pytest.mark.timeout(180)
def test_following_the_guide_ends_in_a_running_fleet(broker: Broker, tmp_path: Path) -> None:
    commands, port = _commands(), str(free_port())
    assert commands[0].startswith("sudo apt-get install")
    assert "pip install" in commands[1]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    running: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "log").open("wb")
    try:
        for command in commands[2:-1]:
            text = command.replace("8883", port).removesuffix("&")
            process = subprocess.Popen(
                ["bash", "-c", f"exec {text}" if command.endswith("&") else text],
                cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            running.append(process)
            if command.endswith("&"):
                time.sleep(1.0)  # as long as a reader takes to type the next one
            else:
                assert process.wait(60) == 0, (tmp_path / "log").read_text()
        end = time.monotonic() + 90
        while True:
            told = subprocess.run(
                ["bash", "-c", commands[-1]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            if told.returncode == 0 and "d1" in told.stdout and "d2" in told.stdout:
                break
            assert time.monotonic() < end, told.stdout + told.stderr + (tmp_path / "log").read_text()
    finally:
        for process in reversed(running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        log.close()


def test_every_command_of_the_guide_exists() -> None:
    from tools.broker import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"^(?:sudo )?relief broker (\w+)", GUIDE, re.MULTILINE))
    assert named <= known
    assert known - named == set(), "the guide leaves a command out"
