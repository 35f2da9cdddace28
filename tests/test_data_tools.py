"""The commands that describe, draw, make up and replay recordings; replay over a real broker."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.errors import Unavailable
from protocol.mqtt import MqttTransport
from protocol.transport import Event, Received
from sensors.mqtt_source import TopicSource
from sensors.originals import write_mhealth, write_pamap2
from sensors.recording import DataError, Recording
from sensors.replay import ReplaySource
from sensors.stream import WindowRing
from sensors.synthetic import Synthetic
from sensors.windows import cut
from sensors.wire import read_about
from tools.cli import build
from tools.replay import AWAKE_S, publish_all, speed_of, wait_for


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIEF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    write_pamap2(root / "pamap2", subjects=2, bout_s=6.0, bouts=1)
    write_mhealth(root / "mhealth", subjects=2, bout_s=6.0, bouts=1, absent=("ecg",))
    return root


def relief(*arguments: str) -> str:
    result = CliRunner().invoke(build(["data", "replay"]), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_info_tells_subjects_modalities_rates_activities_and_gaps(
    originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELIEF_DATA", str(originals))
    said = relief("data", "info", "pamap2")
    for word in ("hand_gyro", "heart_rate", "rad/s", "33.33", "rope_jumping", "101", "102", "(unlabelled)"):
        assert word in said
    assert said.strip().splitlines()[-1].startswith("pamap2: 2 subjects, 10 modalities, 2.4 labelled minutes")
    plain = json.loads(relief("data", "info", "mhealth", "--json"))
    assert [m["name"] for m in plain["modalities"]].count("ecg") == 0
    (first, second) = plain["subjects"]
    assert first["activities"]["jogging"] == 6.0 and second["subject"] == "2"
    assert first["seconds"] == pytest.approx(sum(first["activities"].values()) + first["unlabelled"])


def test_plot_draws_a_strip_a_modality(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIEF_DATA", str(originals))
    said = relief("data", "plot", "mhealth", "--subject", "2", "--seconds", "20", "--out", "some/where.png")
    picture = (tmp_path / "some/where.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000
    assert "7 modalities" in said
    with pytest.raises(ValueError, match="mhealth has no subject '9': expected one of 1, 2"):
        relief("data", "plot", "mhealth", "--subject", "9")
    with pytest.raises(ValueError, match="nothing from 10000 s on"):
        relief("data", "plot", "mhealth", "--begin", "10000")


def test_generated_files_are_found_and_never_mixed_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIEF_DATA", str(tmp_path / "here"))
    relief("data", "generate", "mhealth", "--subjects", "1", "--bout", "3", "--bouts", "1")
    said = relief("data", "info", "mhealth")
    assert "1 subject, 8 modalities" in said and "made-up recordings" in said.replace("\n", " ")
    with pytest.raises(ValueError, match="is not empty"):
        relief("data", "generate", "mhealth")
    with pytest.raises(ValueError, match="expected one of pamap2, mhealth"):
        relief("data", "generate", "dsads")


def test_fetch_shows_licence_and_citation_and_without_network_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("sensors.download.PAUSE_S", 0.0)
    result = CliRunner().invoke(build(["data"]), ["data", "fetch", "mhealth", "--folder", "there"])
    assert isinstance(result.exception, DataError)
    assert "there" in str(result.exception) and "mhealth+dataset.zip" in str(result.exception)
    assert "CC BY 4.0" in result.output and "Banos" in result.output
    with pytest.raises(ValueError, match="no data set 'uci' to fetch"):
        relief("data", "fetch", "uci")


# -- replay ----------------------------------------------------------------------------------------------------


class Listener:
    """A subscriber with the time at which each message came."""

    def __init__(self, broker: Broker, topics: str, identity: str) -> None:
        self.got: list[tuple[float, str, bytes]] = []
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._transport = MqttTransport(BrokerConfig(port=broker.port), identity)
        self._transport.open(lambda event: self._take(event, events))
        wait_for(events, "test", 10.0)
        here = f"sync/{identity}"
        self._transport.subscribe(topics, here)
        self._transport.publish(here, b"")
        self.until(1)  # our own message came back, so the broker knows both subscriptions
        self.got.clear()

    def _take(self, event: Event, events: queue.SimpleQueue[Event]) -> None:
        if isinstance(event, Received):
            self.got.append((time.monotonic(), event.topic, event.payload))
        else:
            events.put(event)

    def until(self, count: int, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while len(self.got) < count:
            assert time.monotonic() < end, f"{len(self.got)} of {count} messages in {seconds} s"
            time.sleep(0.02)

    def close(self) -> None:
        self._transport.close()


@pytest.fixture
def player(broker: Broker, fleet: str) -> Iterator[MqttTransport]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    transport = MqttTransport(BrokerConfig(port=broker.port), f"operator-{fleet}-replay")
    transport.open(events.put)
    wait_for(events, "test", 10.0)
    yield transport
    transport.close()


def test_what_is_replayed_becomes_the_same_windows_at_the_other_end(
    broker: Broker, fleet: str, player: MqttTransport
) -> None:
    made = Synthetic(subjects=1, activities=("walking", "lying"), bouts=1, bout_s=12.0, gaps=0.003)
    listener = Listener(broker, f"{fleet}/#", f"listener-{fleet}")
    source = ReplaySource(made, "1", ["wrist_acc", "ecg"], speed=float("inf"))
    played = publish_all(source, player, fleet, made.activities, threading.Event())
    assert played.seconds == pytest.approx(source.seconds())
    listener.until(1 + 2 * played.pieces)
    listener.close()
    told = next(payload for _, topic, payload in listener.got if topic == f"{fleet}/about")
    modalities, activities = read_about(told)
    assert modalities == source.modalities and activities == made.activities
    topics = TopicSource(fleet, modalities, lambda topics: None)
    ring = WindowRing(modalities, made.rate_hz, made.window_s, made.overlap)
    topics.open()
    for _, topic, payload in listener.got:
        topics.feed(topic, payload)
        while (samples := topics.read(0.0)) is not None:
            ring.push(samples)
    ring.flush()
    expected = cut(made.recordings("1"), made, modalities=["wrist_acc", "ecg"])
    windows = ring.windows()
    assert len(expected) > 10 and windows.y.tolist() == expected.y.tolist()
    for name in expected.x:
        assert np.array_equal(windows.x[name], expected.x[name])


def test_at_the_recorded_pace_pieces_come_within_five_milliseconds(
    broker: Broker, fleet: str, player: MqttTransport
) -> None:
    made = SlowlyLoaded(subjects=1, activities=("walking",), bouts=1, bout_s=3.0)
    listener = Listener(broker, f"{fleet}/wrist_acc", f"listener-{fleet}")
    source = ReplaySource(made, "1", ["wrist_acc"], piece_s=0.1, awake_s=AWAKE_S)
    waking: list[float] = []
    machine = threading.Thread(target=_wake_on_time, args=(waking, 35, 0.1))
    machine.start()
    played = publish_all(source, player, fleet, made.activities, threading.Event(), dated=True)
    listener.until(played.pieces)
    listener.close()
    machine.join()
    since_epoch = time.time() - time.monotonic()
    sensed = [json.loads(payload)["time"] + 0.1 for _, _, payload in listener.got[:-1]]
    came = np.diff([at for at, _, _ in listener.got])
    # What a thread that only sleeps is late at the same time is the machine's, busy with other tests, not the replay's.
    allowed = 0.005 + 4 * float(np.median(waking))
    assert played.lateness(0.5) < allowed
    assert np.median(np.abs(came - 0.1)) < 2 * allowed
    assert abs(came.sum() - 0.1 * len(came)) < 0.1 + 4 * max(waking)  # no drift over all of it
    after = [at + since_epoch - then for (at, _, _), then in zip(listener.got, sensed, strict=False)]
    assert -0.002 < np.median(after) < 2 * allowed  # the time in a message is that of its samples


class SlowlyLoaded(Synthetic):
    """As a long file is at its first start."""

    def recordings(self, subject: str) -> Iterator[Recording]:
        time.sleep(0.4)
        yield from super().recordings(subject)


def _wake_on_time(late: list[float], times: int, every: float) -> None:
    """How late a thread is that wants to wake up every so often."""
    began, never = time.monotonic(), threading.Event()
    for n in range(1, times + 1):
        never.wait(max(0.0, began + n * every - time.monotonic()))
        late.append(time.monotonic() - began - n * every)


def test_the_command_ends_soon_after_ctrl_c(broker: Broker, fleet: str) -> None:
    listener = Listener(broker, f"{fleet}/#", f"listener-{fleet}")
    command = [
        "replay",
        "synthetic",
        "--port",
        str(broker.port),
        "--prefix",
        fleet,
        "--modality",
        "ecg",
        "--name",
        fleet,
    ]
    repository = Path(__file__).parent.parent
    watcher, terminal = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", *command],
        stdout=subprocess.PIPE, stderr=terminal, text=True, cwd=repository, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    shown: list[bytes] = []
    reading = threading.Thread(target=_read_to_the_end, args=(watcher, shown), daemon=True)
    reading.start()
    try:
        listener.until(8, 30.0)
        running.send_signal(signal.SIGINT)
        began = time.monotonic()
        said, _ = running.communicate(timeout=10)
    finally:
        running.kill()
        listener.close()
    assert time.monotonic() - began < 3.0
    assert running.returncode == 0
    reading.join(10)
    os.close(watcher)
    # On a terminal: how far it is, and the time left, roughly so soon after the beginning.
    left = re.findall(rb"[1-9]\d* of (\d+) s.*?\d:(\d\d):(\d\d)", b"".join(shown))
    assert left and all(int(total) / 3 < 60 * int(m) + int(s) < 3 * int(total) for total, m, s in left[-1:])
    assert "s of recording in" in said.splitlines()[-1] and "at most" in said.splitlines()[-1]
    first = json.loads(next(payload for _, topic, payload in listener.got if topic == f"{fleet}/ecg"))
    assert abs(first["time"] - time.time()) < 60 and first["rate"] == 50.0 and len(first["values"]) == 10


def _read_to_the_end(terminal: int, shown: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # the other side has closed it
        while data := os.read(terminal, 4096):
            shown.append(data)


def test_without_a_broker_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.replay.CONNECT_S", 0.5)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Unavailable, match=r"broker 127\.0\.0\.1:9: "):
            relief("replay", "synthetic", "--port", "9")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("text", "speed"), [("1", 1.0), ("2.5x", 2.5), ("max", float("inf"))])
def test_speeds_are_numbers_or_max(text: str, speed: float) -> None:
    assert speed_of(text) == speed


@pytest.mark.parametrize("text", ["0", "-1", "fast", "nan", ""])
def test_other_speeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        speed_of(text)
