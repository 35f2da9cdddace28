"""Asking a device how it is: the local socket, `relief device check`, and what systemd is told."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from device_runtime.checks import Level, certificate, clock, disk, examine, sensors
from device_runtime.config import DeviceConfig, Settings, SourceConfig
from device_runtime.live import LiveConfig
from device_runtime.local import AlreadyRunning, Asked, LocalSocket, ask, socket_path
from device_runtime.notify import Notify
from device_runtime.runtime import Runtime
from device_runtime.senses import replayed
from device_runtime.sensors_config import SensorConfig
from protocol.config import BrokerConfig
from protocol.memory import MemoryBroker, MemoryTransport
from sensors.recording import Modality
from tests.test_live_source import Script

ROOT = Path(__file__).parents[1]


def settings(folder: Path, broker: BrokerConfig | None = None, **device) -> Settings:
    plain = {"id": "d1", "modalities": ("ecg",), "state": folder, "train": False, "watts": 2.0}
    source = SourceConfig(subject="1", speed=float("inf"))
    config = DeviceConfig(**(plain | {"source": source} | device))
    return Settings(fleet="f", broker=broker or BrokerConfig(transport="memory"), device=config)


@pytest.fixture
def running(tmp_path):
    """A device in this process, over a broker in memory."""
    known, broker = settings(tmp_path), MemoryBroker()
    sensing, _ = replayed(known.device, trains=False)
    runtime = Runtime(known, MemoryTransport(broker, "d1"), sensing)
    thread = threading.Thread(target=runtime.run)
    thread.start()
    until = time.monotonic() + 10
    while ask(known.device.folder, {}) is None and time.monotonic() < until:
        time.sleep(0.01)
    yield known, runtime
    runtime.stop()
    thread.join(10)
    assert not thread.is_alive()


def by_name(found) -> dict:
    return {r.check: r for r in found}


# -- the socket ----------------------------------------------------------------------------------------------


def test_a_running_device_answers_from_its_own_loop(running):
    known, runtime = running
    answer = ask(known.device.folder, {"ask": "status"})
    assert answer is not None
    assert (answer["device"], answer["boot"], answer["pid"]) == ("d1", runtime.boot, os.getpid())
    assert answer["connected"] is True
    assert answer["windows_dropped"] == 0


def test_a_second_process_of_the_same_device_does_not_start(running):
    known, _ = running
    with pytest.raises(AlreadyRunning, match="running already"):
        LocalSocket(known.device.folder, lambda asked: None).open()
    sensing, _ = replayed(known.device, trains=False)
    other = Runtime(known, MemoryTransport(MemoryBroker(), "d1"), sensing)
    with pytest.raises(AlreadyRunning):
        other.run()
    assert ask(known.device.folder, {}) is not None


def test_nobody_there_and_a_loop_that_hangs_both_mean_no_answer(tmp_path, monkeypatch):
    assert ask(tmp_path, {}) is None
    monkeypatch.setattr("device_runtime.local.PATIENCE", 0.2)
    hangs = LocalSocket(tmp_path, lambda asked: None)
    assert hangs.open() == ""
    assert ask(tmp_path, {}) is None
    hangs.close()
    assert not hangs.path.exists()


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(socket_path(tmp_path)))
    left.close()
    here = LocalSocket(tmp_path, lambda asked: asked.answer({"ok": True}))
    assert here.open() == ""
    assert ask(tmp_path, {}) == {"ok": True}
    here.close()


def test_garbage_from_a_stranger_harms_nobody(tmp_path):
    here = LocalSocket(tmp_path, lambda asked: asked.answer({"ok": True}))
    here.open()
    for garbage in (b"", b"\xff\xfe\n", b"no json\n", b"x" * 70_000):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(here.path))
            with contextlib.suppress(BrokenPipeError):
                link.sendall(garbage)
    assert ask(tmp_path, {}) == {"ok": True}
    here.close()


def test_a_folder_with_a_long_name_still_has_a_socket(tmp_path):
    deep = tmp_path / ("x" * 120)
    here = LocalSocket(deep, lambda asked: asked.answer({}))
    assert here.open() == ""
    assert ask(deep, {}) == {}
    here.close()


def test_an_answer_that_comes_too_late_is_none(monkeypatch):
    monkeypatch.setattr("device_runtime.local.PATIENCE", 0.05)
    assert Asked({}).wait() is None


# -- the checks ----------------------------------------------------------------------------------------------


def test_a_running_device_is_asked_instead_of_the_broker(running):
    known, _ = running
    found = by_name(examine(known))
    assert "running as d1" in found["agent"].told
    assert "is connected" in found["broker"].told
    assert found["broker"].todo == "start the coordinator"
    assert found["sensors"].told.startswith("delivering: ecg")
    assert "MiB" in found["memory"].told


def test_a_device_at_a_real_broker_is_asked_by_the_command_and_keeps_its_place(broker, fleet, tmp_path):
    config = tmp_path / "relief.toml"
    config.write_text(
        f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n'
        f'[[device]]\nid = "d1"\nmodalities = ["ecg"]\nstate = "{tmp_path}"\ntrain = false\nwatts = 1.0\n'
    )
    command = [sys.executable, "-m", "tools.cli", "device"]

    def check() -> tuple[int, dict]:
        done = subprocess.run(
            [*command, "check", "--config", str(config), "--json"], cwd=ROOT, capture_output=True, text=True
        )
        lines = json.loads(done.stdout)
        return done.returncode, {line["check"]: line for line in lines}

    _, alone = check()
    assert "took us in" in alone["broker"]["told"]
    child = subprocess.Popen([*command, "run", "--config", str(config)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not (ask(tmp_path / "d1", {}) or {}).get("connected") and time.monotonic() < until:
            time.sleep(0.05)
        boot = ask(tmp_path / "d1", {})["boot"]
        code, found = check()
        assert code == Level.WARN
        assert f"pid {child.pid}" in found["agent"]["told"]
        assert "no coordinator is online" in found["broker"]["told"]
        after = ask(tmp_path / "d1", {})
        assert (after["boot"], after["connected"], after["trouble"]) == (boot, True, "")
    finally:
        child.terminate()
        assert child.wait(60) == 0
    assert not socket_path(tmp_path / "d1").exists()


def test_a_broker_that_is_not_there_fails_the_check(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = by_name(examine(settings(tmp_path, BrokerConfig(port=port))))
    assert found["broker"].level is Level.FAIL
    assert "cannot be reached" in found["broker"].told
    assert found["torch"].told == "not needed: device.train is false"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_fails_the_check(tmp_path):
    tmp_path.chmod(0o500)
    (result,) = disk(settings(tmp_path), None)
    tmp_path.chmod(0o700)
    assert result.level is Level.FAIL


def test_a_problem_of_the_outbox_fails_the_check(tmp_path):
    (result,) = disk(settings(tmp_path), {"outbox_problem": "outbox x: No space left on device"})
    assert (result.level, result.told) == (Level.FAIL, "outbox x: No space left on device")


def test_less_room_than_the_outbox_may_take_is_a_warning(tmp_path):
    (result,) = disk(settings(tmp_path, outbox_bytes=1 << 60), None)
    assert result.level is Level.WARN
    assert "outbox_bytes" in result.todo


def test_a_clock_in_the_past_fails_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e6)
    (result,) = clock(settings(tmp_path), None)
    assert result.level is Level.FAIL


def test_a_key_that_is_not_there_fails_the_check(tmp_path):
    files = {name: tmp_path / name for name in ("ca", "cert", "key")}
    (result,) = certificate(settings(tmp_path, BrokerConfig(**files)), None)
    assert result.level is Level.FAIL
    assert str(files["cert"]) in result.told


def test_a_subject_that_the_recordings_lack_is_named(tmp_path):
    (result,) = sensors(settings(tmp_path, source=SourceConfig(subject="nobody")), None)
    assert result.level is Level.FAIL
    assert "no subject 'nobody'" in result.told


def test_a_sensor_that_is_not_there_is_named(tmp_path):
    sensor = SensorConfig(kind="iio", where="bmi160", modalities={"wrist": ("accel_x",)})
    live = LiveConfig(sensors=(sensor,), rate_hz=50.0, window_s=2.56)
    (result,) = sensors(settings(tmp_path, live=live), None)
    assert result.level is Level.FAIL
    assert "iio bmi160 (wrist)" in result.told


def test_a_sensor_that_went_away_from_a_running_device_is_named(tmp_path):
    (result,) = sensors(settings(tmp_path), {"owned": ["ecg", "wrist"], "modalities": ["ecg"], "windows": 3})
    assert (result.level, result.told) == (Level.FAIL, "delivering: ecg; 3 labelled windows; absent: wrist")


def test_a_sensor_of_a_running_device_whose_samples_are_of_no_use_is_a_warning(tmp_path):
    behind = "samples are 300 s behind this device's clock"
    answer = {"owned": ["ecg", "wrist"], "modalities": ["ecg", "wrist"], "windows": 0}
    answer["sensors"] = {"ecg": {"state": "ok"}, "wrist": {"state": "ok", "reason": behind}}
    (result,) = sensors(settings(tmp_path), answer)
    told = f"delivering: ecg, wrist; 0 labelled windows; wrist: {behind}"
    assert (result.level, result.told) == (Level.WARN, told)


def test_a_sensor_on_another_clock_is_a_warning_before_the_device_runs(tmp_path, monkeypatch):
    wrist = Script(Modality("wrist", ("x",), "", 50.0))
    wrist.say(0.1, time.time() + 300)
    monkeypatch.setattr("device_runtime.checks.maker", lambda *asked: lambda: wrist)
    sensor = SensorConfig(kind="topic", where="kitchen", modalities={"wrist": ("x",)}, rate_hz=50)
    (result,) = sensors(settings(tmp_path, live=LiveConfig(sensors=(sensor,), rate_hz=50.0, window_s=2.56)), None)
    assert result.level is Level.WARN
    assert "delivers, but samples are 300 s ahead of this device's clock" in result.told


# -- systemd -------------------------------------------------------------------------------------------------


def test_systemd_is_told_at_the_beginning_in_between_and_at_the_end(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        told = Notify({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "10000000"})
        assert told.every == 5.0
        told.ready("device d1")
        told.alive("connected")
        told.stopping()
        said = [manager.recv(200).decode() for _ in range(3)]
    assert said == ["READY=1\nSTATUS=device d1", "WATCHDOG=1\nSTATUS=connected", "STOPPING=1"]


def test_without_systemd_nothing_is_due(tmp_path):
    quiet = Notify({})
    assert quiet.every == float("inf")
    quiet.ready("x")
    assert (
        Notify({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).every > 1e9
    )
