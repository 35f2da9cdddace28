"""The launcher against the real Mosquitto: it starts, is alone, says why it does not, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from broker_config import launcher, mosquitto
from broker_config.launcher import Broker, BrokerFailed
from broker_config.mosquitto import FetchFailed, Mosquitto
from tests.parties import eventually

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _needs_mosquitto(broker: Broker) -> None:
    """Skips where there is none."""


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_it_listens_on_loopback_only_and_leaves_nothing() -> None:
    with Broker() as broker:
        socket.create_connection((broker.host, broker.port), timeout=1).close()
        listening = [c.laddr.ip for c in psutil.Process(broker.pid).net_connections() if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        folder, pid = broker._folder, broker.pid
        assert folder.stat().st_mode & 0o077 == 0
    assert _gone(pid)
    assert not folder.exists()


def test_it_stops_within_two_seconds_even_when_it_does_not_listen_to_reason() -> None:
    with Broker() as broker:
        os.kill(broker.pid, signal.SIGSTOP)
        began, pid = time.monotonic(), broker.pid
    assert time.monotonic() - began < 2
    assert _gone(pid)


def test_two_brokers_do_not_meet() -> None:
    with Broker() as one, Broker() as other:
        assert one.port != other.port


def test_a_lost_race_for_the_port_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        ports = iter([rival.getsockname()[1]])
        real = launcher._free_port
        monkeypatch.setattr(launcher, "_free_port", lambda host: next(ports, 0) or real(host))
        with Broker() as broker:
            assert broker.port != rival.getsockname()[1]


def test_a_fixed_port_that_is_taken_is_said() -> None:
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        port = rival.getsockname()[1]
        with pytest.raises(BrokerFailed, match=f"port {port} is taken"):
            Broker(port=port).start()


def test_a_wrong_configuration_shows_mosquittos_own_words(tmp_path: Path) -> None:
    def wrong(port: int, folder: Path) -> str:
        return f"listener {port} 127.0.0.1\nno_such_setting 1\n"

    with pytest.raises(BrokerFailed, match=r"did not start:\n(.|\n)*no_such_setting"):
        Broker(configure=wrong, folder=tmp_path).start()


def test_it_dies_with_its_parent_however_that_ends() -> None:
    code = (
        "from broker_config.launcher import Broker\nimport time\n"
        "broker = Broker().start()\nprint(broker.pid, broker._folder, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    assert psutil.pid_exists(int(pid))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: _gone(int(pid)), 2)
    shutil.rmtree(folder)


def test_it_outlives_the_thread_that_started_it() -> None:
    broker = Broker()
    starter = threading.Thread(target=broker.start)
    starter.start()
    starter.join()
    time.sleep(0.1)
    socket.create_connection((broker.host, broker.port), timeout=1).close()
    broker.stop()


def test_after_a_kill_it_comes_back_on_the_same_port() -> None:
    with Broker() as broker:
        port, pid = broker.port, broker.pid
        broker.kill()
        assert _gone(pid)
        broker.restart()
        assert broker.port == port
        assert broker.pid != pid
        socket.create_connection((broker.host, port), timeout=1).close()


def test_without_mosquitto_and_without_apt_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mosquitto, "FOLDERS", ())
    found, told = mosquitto.find_or_fetch()
    assert found is None
    assert "apt-get is missing" in told
    with pytest.raises(BrokerFailed, match="apt-get is missing"):
        Broker()


def test_mosquitto_is_fetched_without_root_and_runs(tmp_path: Path) -> None:
    try:
        fetched = mosquitto.fetch(tmp_path)
    except FetchFailed as error:
        pytest.skip(f"Mosquitto cannot be fetched here: {error}")
    assert fetched.program.is_relative_to(tmp_path)
    assert fetched.version() >= (1, 6)
    with Broker(mosquitto=fetched) as broker:
        assert psutil.Process(broker.pid).exe() == str(fetched.program)
    assert mosquitto._unpacked(tmp_path) == fetched


def test_a_program_that_does_not_accept_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\nexec sleep 60\n")
    deaf.chmod(0o755)
    monkeypatch.setattr(launcher, "START_PATIENCE", 0.3)
    with pytest.raises(BrokerFailed, match=r"does not accept after 0.3 s"):
        Broker(mosquitto=Mosquitto(deaf)).start()
    assert not [p for p in psutil.Process().children(recursive=True) if "sleep" in p.name()]
