"""A device with sensors of its own: labels that come late, sensors that go and come, windows that stay comparable."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from broker_config.launcher import Broker
from broker_config.settings import loopback
from device_runtime.live import LiveSensing, live
from device_runtime.sensors_config import LiveConfig, SensorConfig, maker
from protocol.config import BrokerConfig
from protocol.messages import Label, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received
from sensors.live import State
from sensors.locate import find
from sensors.recording import Modality
from sensors.stream import Samples, WindowRing
from sensors.wire import encode
from tests.emulated_board import wait_for
from tests.test_live_source import Script
from tools.label import class_index, duration, label

HAND = Modality("hand", ("x",), "m/s2", 50.0)
CHEST = Modality("chest", ("x", "y"), "m/s2", 50.0)
TWO = (
    SensorConfig(kind="serial", where="/dev/a", modalities={"hand": ("0",)}, rate_hz=50),
    SensorConfig(kind="serial", where="/dev/b", modalities={"chest": ("0", "1")}, rate_hz=50),
)


def topic(where: str, modality: str) -> SensorConfig:
    return SensorConfig(kind="topic", where=where, modalities={modality: ("x",)}, rate_hz=50)


CONFIG = LiveConfig(sensors=TWO, rate_hz=25.0, window_s=0.4, overlap=0.0, patience_s=1.0, stall_s=0.5)


class Wearer:
    """Two scripted sensors that speak in real time while they are `on`."""

    def __init__(self) -> None:
        self.hand, self.chest = Script(HAND), Script(CHEST)
        self.on = {self.hand, self.chest}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        start = time.time()
        said = 0
        while not self._over.wait(0.1):
            while start + (said + 1) * 0.1 <= time.time():
                for script in tuple(self.on):
                    script.say(0.1, start + said * 0.1)
                said += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def worn() -> Iterator[tuple[Wearer, LiveSensing]]:
    wearer = Wearer()
    sensing = LiveSensing([lambda: wearer.hand, lambda: wearer.chest], CONFIG, subject="dev")
    sensing.open(lambda: None)
    wait_for(lambda: len(sensing.modalities) == 2, "both sensors")
    yield wearer, sensing
    sensing.close()
    wearer.stop()


def test_a_late_label_reaches_what_was_sensed_before_it_came(worn: tuple[Wearer, LiveSensing]) -> None:
    _, sensing = worn
    time.sleep(1.0)
    assert sensing.count == 0  # unlabelled windows serve inference only
    now = time.time()
    sensing.annotate(Label(start=now - 0.8, end=now + 100.0, label=3))
    wait_for(lambda: sensing.count >= 1, "labelled windows")
    held = sensing.labelled()
    assert set(held.x) == {"hand", "chest"} and held.x["chest"].shape[1:] == (2, 10)
    assert set(held.y.tolist()) == {3}
    latest = sensing.latest()
    assert latest is not None and set(latest[2]) == {"hand", "chest"} and abs(latest[1] - time.time()) < 2


def test_a_lost_sensor_leaves_and_its_windows_go_on_without_it_until_it_is_back(
    worn: tuple[Wearer, LiveSensing],
) -> None:
    wearer, sensing = worn
    stop = threading.Event()

    def label_all() -> None:
        while not stop.wait(0.3):
            sensing.annotate(Label(start=time.time() - 0.9, end=time.time(), label=1))

    operator = threading.Thread(target=label_all)
    operator.start()
    try:
        wait_for(lambda: sensing.count >= 2, "windows of both")
        wearer.on.discard(wearer.chest)
        wait_for(lambda: sensing.modalities == {"hand": 1}, "the sensor to leave")
        before = sensing.labelled()
        assert set(before.x) == {"hand"} and len(before) >= 2
        wait_for(lambda: sensing.labelled().ids.max() >= 1 << 40, "windows without it")
        alone = sensing.labelled()
        assert (np.diff(alone.ids) > 0).all() and set(before.ids) <= set(alone.ids)
        wearer.on.add(wearer.chest)
        wait_for(lambda: sensing.modalities == {"hand": 1, "chest": 2}, "the sensor to be back")
        both = sensing.labelled()
        assert set(both.x) == {"hand", "chest"} and len({len(x) for x in both.x.values()} | {len(both)}) == 1
        assert not np.isnan(both.x["chest"]).any()
        wait_for(lambda: sensing.count > len(both), "windows of both again")
    finally:
        stop.set()
        operator.join()


class Rota:
    """Sensors that are there as the test says."""

    modalities = (HAND, CHEST)

    def __init__(self) -> None:
        self.present: tuple[Modality, ...] = (HAND,)
        self.health: dict[str, object] = {}


def test_what_is_predicted_on_is_never_older_than_the_last_change_of_sensors() -> None:
    sensing, rota = LiveSensing([lambda: Script(HAND), lambda: Script(CHEST)], CONFIG, subject="dev"), Rota()
    sensing._source = rota  # type: ignore[assignment]

    def say(at: float) -> float:
        streams = {m.name: np.ones((25, len(m.channels)), np.float32) for m in rota.present}
        sensing._push(Samples(at, 25.0, streams))
        newest = sensing.latest()
        assert newest is not None and set(newest[2]) == set(streams)
        return newest[1]

    assert say(1000.0) == pytest.approx(1001.0, abs=0.1)
    rota.present = (HAND, CHEST)
    sensing._moved()
    say(5000.0)
    rota.present = (HAND,)
    sensing._moved()
    assert sensing.latest() is None
    assert say(9000.0) == pytest.approx(9001.0, abs=0.1)


def test_a_label_on_another_clock_costs_nothing() -> None:
    ring = WindowRing((HAND,), 50.0, 0.4, patience_s=5.0)
    ring.annotate(1_700_000_000.0, 1_700_000_030.0, 2)
    ring.push(Samples(0.0, 50.0, {"hand": np.ones((50, 1), np.float32)}))
    ring.annotate(1_700_000_000.0, 1_700_000_030.0, 2)
    ring.annotate(0.0, 1_700_000_000.0, 1)
    ring.push(Samples(1.0, 50.0, {"hand": np.ones((50, 1), np.float32)}))
    ring.flush()
    windows = ring.windows()
    assert len(windows) == 5 and set(windows.y.tolist()) == {1}


def test_topics_of_another_node_feed_a_device_over_a_real_broker(broker: Broker, fleet: str) -> None:
    config = LiveConfig(
        sensors=(topic(f"{fleet}/bob", "hand"),),
        rate_hz=25.0,
        window_s=0.4,
        patience_s=0.0,
    )
    at = BrokerConfig(host="127.0.0.1", port=broker.port)
    sensing = live(config, at, f"{fleet}-dev", 1 << 20)
    node, events = MqttTransport(at, f"{fleet}-node"), []
    up = threading.Event()

    def heard(event: Event) -> None:
        events.append(event)
        if isinstance(event, Connected):
            up.set()

    node.open(heard)
    sensing.open(lambda: None)
    try:
        assert up.wait(10)
        start = time.time()
        for k in range(200):
            piece = Samples(start + k * 0.1, 50.0, {"hand": np.ones((5, 1), np.float32)}, np.full(5, 2))
            node.publish(f"{fleet}/bob/hand", encode(piece, "hand"))
            time.sleep(0.02)
            if sensing.count >= 2:
                break
        held = sensing.labelled()
        assert len(held) >= 2 and set(held.y.tolist()) == {2} and sensing.modalities == {"hand": 1}
    finally:
        sensing.close()
        node.close()


def test_two_nodes_feed_a_device_over_two_connections_that_leave_each_other_alone(broker: Broker, fleet: str) -> None:
    nodes = {"hand": "kitchen", "chest": "hall"}
    config = LiveConfig(sensors=tuple(topic(f"{fleet}/{n}", m) for m, n in nodes.items()), rate_hz=25.0, window_s=0.4)
    at, up = BrokerConfig(port=broker.port), threading.Event()
    node = MqttTransport(at, f"{fleet}-node")
    node.open(lambda event: up.set() if isinstance(event, Connected) else None)
    sensing = live(config, at, f"{fleet}-dev", 1 << 20)
    sensing.open(lambda: None)
    try:
        assert up.wait(10)

        def both() -> bool:
            for m, where in nodes.items():
                piece = Samples(time.time() - 0.1, 50.0, {m: np.ones((5, 1), np.float32)})
                node.publish(f"{fleet}/{where}/{m}", encode(piece, m))
            return set(sensing.modalities) == {"hand", "chest"}

        wait_for(both, "both sensors")
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            assert both()
            time.sleep(0.1)
        assert not [line for line in broker.log.splitlines() if f"{fleet}-dev" in line and "already connected" in line]
    finally:
        sensing.close()
        node.close()


def test_a_sensor_whose_broker_refuses_it_says_why_and_is_back_once_it_is_let_in(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    open_to_all = False

    def configure(port: int, folder: Path) -> str:
        plain = loopback(port, folder, user="root" if os.geteuid() == 0 else None)
        return plain if open_to_all else plain.replace("allow_anonymous true", "allow_anonymous false")

    with Broker(configure=configure) as own:
        at = BrokerConfig(port=own.port, reconnect_min=0.1, reconnect_max=0.5)
        config = LiveConfig(sensors=(topic("kitchen", "hand"),), rate_hz=25.0, window_s=0.4)
        sensing = live(config, at, "dev", 1 << 20)
        sensing.open(lambda: None)
        node = MqttTransport(at, "node")
        try:
            wait_for(lambda: sensing.health["hand"].state is State.DEAD, "the refusal")
            assert "dev-sensors-hand is not allowed to connect" in sensing.health["hand"].reason
            assert "sensor of hand: dev-sensors-hand is not allowed" in caplog.text
            open_to_all = True
            own.restart()
            node.open(lambda event: None)

            def back() -> bool:
                node.publish("kitchen/hand", b"1")
                return "hand" in sensing.modalities

            wait_for(back, "the sensor", 30.0)
        finally:
            sensing.close()
            node.close()


def test_topics_at_a_broker_that_goes_by_certificates_need_one_of_their_own() -> None:
    files = {name: Path(f"{name}.pem") for name in ("ca", "cert", "key")}
    secure = BrokerConfig(**files)
    with pytest.raises(ValueError, match="topic kitchen: give the sensor a broker of its own"):
        maker(topic("kitchen", "hand"), secure, "dev")
    maker(topic("kitchen", "hand").model_copy(update={"broker": BrokerConfig()}), secure, "dev")


def test_a_sensor_on_another_clock_is_in_the_log_and_in_telemetry(caplog: pytest.LogCaptureFixture) -> None:
    hand, chest = Script(HAND), Script(CHEST)
    sensing = LiveSensing([lambda: hand, lambda: chest], CONFIG, subject="dev")
    sensing.open(lambda: None)
    try:
        for _ in range(3):
            hand.say(0.1, time.time() - 0.1)
            chest.say(0.1, time.time() + 300)
        wait_for(lambda: len(sensing.modalities) == 2, "both sensors")
        told = sensing.told()
        why = "samples are 300 s ahead of this device's clock: set the clock of what sends them"
        assert told["sensors"]["hand"]["state"] == "ok" and "reason" not in told["sensors"]["hand"]
        assert told["sensors"]["chest"]["reason"] == why
        assert {"windows_dropped", "pieces_refused"} <= set(told)
        assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [f"sensor of chest: {why}"]
    finally:
        sensing.close()


def test_an_operators_command_reaches_the_device_as_an_interval_of_its_class(
    broker: Broker, fleet: str, tmp_path: Path
) -> None:
    config = tmp_path / "fleet.toml"
    config.write_text(f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n[model]\ndataset = "synthetic"\n')
    device, events = MqttTransport(BrokerConfig(port=broker.port), f"{fleet}-dev"), queue.SimpleQueue[Event]()
    device.open(events.put)
    try:
        while not isinstance(events.get(timeout=10), Connected):
            pass
        device.subscribe(Topics(fleet).device("dev", "label"))
        time.sleep(0.3)
        app = typer.Typer()
        app.command()(label)
        activity = find("synthetic").dataset.activities[2]
        arguments = ["--config", str(config), "--device", "dev", activity, "--last", "2min"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        heard = events.get(timeout=10)
        assert isinstance(heard, Received)
        told = decode(Label, heard.payload)
        assert told.label == 2 and told.end - told.start == pytest.approx(120) and abs(told.end - time.time()) < 20
    finally:
        device.close()


def test_an_activity_or_a_time_that_nobody_knows_is_named() -> None:
    known = ("walking", "walking upstairs", "running")
    assert [class_index(a, known) for a in ("walking", "RUN", "1")] == [0, 2, 1]
    for wrong in ("w", "flying", "7", ""):
        with pytest.raises(ValueError, match="the model knows walking, walking upstairs, running"):
            class_index(wrong, known)
    assert [duration(t) for t in ("30s", "2min", "45", "1.5h")] == [30, 120, 45, 5400]
    for wrong in ("soon", "0s", "-3s", ""):
        with pytest.raises(ValueError, match="use a time such as"):
            duration(wrong)


def test_a_sensor_that_cannot_be_is_refused_with_the_reason() -> None:
    for changes, reason in (
        ({"rate_hz": 0}, "needs its samples per second"),
        ({"modalities": {"hand": ("x",)}}, "columns of a serial line are numbers"),
        ({"kind": "ble"}, "feeds exactly one"),
        ({"kind": "camera"}, "kind"),
    ):
        plain = {"kind": "serial", "where": "/dev/a", "rate_hz": 50, "modalities": {"hand": ("0",), "chest": ("1",)}}
        with pytest.raises(ValidationError, match=reason):
            SensorConfig.model_validate({**plain, **changes})


def test_sensors_that_are_not_there_do_not_keep_a_device_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = LiveConfig(
        sensors=(
            SensorConfig(kind="serial", where=str(tmp_path / "none"), modalities={"hand": ("0",)}, rate_hz=50),
            SensorConfig(kind="iio", where="no-such-imu", modalities={"chest": ("accel_x",)}),
        ),
        rate_hz=25.0,
        window_s=0.4,
    )
    sensing = live(config, BrokerConfig(), "dev", 1 << 20)
    sensing.open(lambda: None)
    wait_for(lambda: all(h.reason for h in sensing.health.values()), "the reasons")
    assert sensing.modalities == {} and len(sensing.labelled()) == 0 and sensing.latest() is None
    assert "IIO device 'no-such-imu' is not there" in sensing.health["chest"].reason
    wait_for(lambda: "sensor of chest: IIO device 'no-such-imu'" in caplog.text, "the log")
    sensing.close()
