"""Live sensors together: serial lines, topics and failing sensors on one grid, each absent while it is silent."""

from __future__ import annotations

import json
import math
import os
import pty
import queue
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.ble import HeartRateSource, heart_rate
from sensors.live import LiveSource, State
from sensors.mqtt_source import TopicSource
from sensors.recording import Modality
from sensors.serial_line import SerialSource
from sensors.stream import Samples, WindowRing
from sensors.wire import encode
from tests.emulated_board import wait_for

HAND = Modality("hand", ("x", "y", "z"), "m/s2", 50.0)
CHEST = Modality("chest", ("x",), "m/s2", 50.0)
HEART = Modality("heart", ("bpm",), "1/min", 1.0)


class Script:
    """A source driven by the test: what is put in comes out, an exception is raised, None ends it."""

    def __init__(self, modality: Modality) -> None:
        self.modalities = (modality,)
        self.events: queue.SimpleQueue[Samples | Exception | None] = queue.SimpleQueue()
        self.opened = 0
        self.refuse = False
        self.over = False

    def open(self) -> None:
        if self.refuse:
            raise OSError("unplugged")
        self.opened += 1

    def read(self, timeout: float | None = None) -> Samples | None:
        try:
            event = self.events.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    @property
    def ended(self) -> bool:
        return self.over

    def close(self) -> None:
        pass

    def say(self, seconds: float, at: float | None = None) -> None:
        m = self.modalities[0]
        count = max(1, round(seconds * m.rate_hz))
        values = np.ones((count, len(m.channels)), np.float32)
        self.events.put(Samples(time.time() if at is None else at, m.rate_hz, {m.name: values}))


Make = Callable[..., LiveSource]


@pytest.fixture
def live() -> Iterator[Make]:
    made: list[LiveSource] = []

    def make(*sources: Script, **settings: object) -> LiveSource:
        made.append(LiveSource([lambda s=s: s for s in sources], 25.0, retry_s=(0.05, 0.2), **settings))  # type: ignore[misc,arg-type]
        made[-1].open()
        return made[-1]

    before = threading.active_count()
    yield make
    for source in made:
        source.close()
    assert threading.active_count() == before


def test_pieces_of_all_sensors_come_on_the_models_grid(live: Make) -> None:
    hand, heart = Script(HAND), Script(HEART)
    source = live(hand, heart)
    at = 1_700_000_000.013
    hand.say(2.0, at)
    heart.say(3.0, at)
    pieces = [source.read(2.0), source.read(2.0)]
    lengths = {name: len(p) for p in pieces if p for name in p.streams}
    assert all(p and p.rate_hz == 25.0 and p.time * 25 == pytest.approx(round(p.time * 25)) for p in pieces)
    assert lengths == {"hand": 49, "heart": 50}
    assert [m.name for m in source.present] == ["hand", "heart"]
    assert {m.rate_hz for m in source.modalities} == {25.0}


def test_a_silent_sensor_is_absent_until_it_speaks_again(live: Make) -> None:
    hand, other = Script(HAND), Script(CHEST)
    changes = threading.Semaphore(0)
    source = live(hand, other, stall_s=0.6, changed=changes.release)
    for _ in range(20):
        hand.say(0.2)
        if source.health["chest"].state is not State.STALLED:
            other.say(0.2) if _ < 3 else None
        time.sleep(0.1)
    assert [m.name for m in source.present] == ["hand"]
    assert source.health["chest"].state is State.STALLED and source.health["chest"].reason.startswith("nothing for")
    other.say(0.2)
    wait_for(lambda: len(source.present) == 2, "the sensor to come back")
    assert source.health["chest"].lost == 1 and other.opened == 1
    assert sum(changes.acquire(blocking=False) for _ in range(10)) == 4  # two came, one went, one came back


def test_of_two_modalities_of_one_source_the_silent_one_is_absent_and_the_other_goes_on(live: Make) -> None:
    node = TopicSource("home/bob", (HAND, CHEST), lambda topics: None)
    source = live(node, stall_s=0.5)  # type: ignore[arg-type]

    def say(*names: str) -> None:
        for m in (HAND, CHEST):
            if m.name in names:
                values = np.ones((5, len(m.channels)), np.float32)
                node.feed(f"home/bob/{m.name}", encode(Samples(time.time(), 50.0, {m.name: values}), m.name))

    def present(*said: str) -> list[str]:
        say(*said)
        return [m.name for m in source.present]

    wait_for(lambda: present("hand", "chest") == ["hand", "chest"], "both")
    wait_for(lambda: present("hand") == ["hand"], "the silent one to leave")
    assert source.health["chest"].state is State.STALLED and source.health["hand"].lost == 0
    node.feed("home/bob/chest", b'"no sample"')
    wait_for(lambda: "expected 1 finite" in source.health["chest"].reason, "what it says to be named")
    wait_for(lambda: present("hand", "chest") == ["hand", "chest"], "it to be back")
    assert source.health["chest"].lost == 1


def test_a_failed_sensor_is_opened_again_after_1_2_4_and_up_to_30_seconds() -> None:
    hand, pauses = Script(HAND), list[float]()
    hand.refuse = True
    source = LiveSource([lambda: hand], 25.0)

    def wait(seconds: float | None = None) -> bool:
        pauses.append(seconds or 0.0)
        if len(pauses) == 7:
            source.close()
        return False

    source._closing.wait = wait  # type: ignore[method-assign]
    source.open()
    wait_for(lambda: source.ended, "seven failures")
    source.close()
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("offset", "told"),
    [
        (0.0, ""),
        (-4.0, ""),  # seldom sent
        (300.0, "samples are 300 s ahead of this device's clock: set the clock of what sends them"),
        (-7200.0, "samples are 7,200 s behind this device's clock: set the clock"),
    ],
)
def test_a_sensor_on_another_clock_says_so(live: Make, offset: float, told: str) -> None:
    hand, changes = Script(HAND), list[str]()
    source = live(hand, changed=lambda: changes.append(source.health["hand"].reason))
    for _ in range(3):
        hand.say(0.1, time.time() + offset)
    wait_for(lambda: bool(source.present), "the sensor")
    reason = source.health["hand"].reason
    assert reason.startswith(told) and bool(reason) == bool(told)
    hand.say(0.1)
    wait_for(lambda: not source.health["hand"].reason, "the clock to be right")
    assert len(changes) == (2 if told else 1)


def test_a_failed_sensor_is_opened_again_with_growing_pauses_and_says_why(live: Make) -> None:
    hand = Script(HAND)
    source = live(hand)
    hand.say(0.2)
    wait_for(lambda: source.health["hand"].state is State.OK, "the sensor")
    hand.refuse = True
    hand.events.put(OSError("cable pulled"))
    wait_for(lambda: source.health["hand"].reason == "unplugged", "the failure")
    assert source.present == () and source.health["hand"].state is State.DEAD
    hand.refuse = False
    hand.say(0.2)
    wait_for(lambda: source.health["hand"].state is State.OK, "the sensor to come back")
    assert hand.opened == 2


def test_whatever_a_source_raises_it_is_opened_again(live: Make) -> None:
    hand = Script(HAND)
    source = live(hand)
    hand.events.put(KeyError("battery"))
    wait_for(lambda: source.health["hand"].reason == "KeyError('battery')", "the failure")
    hand.say(0.2)
    wait_for(lambda: source.health["hand"].state is State.OK, "the sensor to come back")


def test_a_sensor_that_is_not_there_at_the_start_is_waited_for(live: Make) -> None:
    hand = Script(HAND)
    hand.refuse = True
    source = live(hand)
    wait_for(lambda: source.health["hand"].state is State.DEAD, "the failure")
    hand.refuse = False
    hand.say(0.2)
    wait_for(lambda: bool(source.present), "the sensor")


def test_windows_cut_from_live_sensors_hold_what_was_sensed(live: Make) -> None:
    hand, heart = Script(HAND), Script(HEART)
    source = live(hand, heart)
    ring = WindowRing(source.modalities, 25.0, 2.0)
    start = 1_700_000_000.0
    for second in range(12):
        hand.say(1.0, start + second)
        heart.say(1.0, start + second)
        while (samples := source.read(0.2)) is not None:
            ring.push(samples)
    latest = ring.latest()
    assert latest is not None and ring.refused == 0
    _, end, windows = latest
    assert set(windows) == {"hand", "heart"} and windows["hand"].shape == (1, 3, 50)
    assert windows["hand"] == pytest.approx(1, abs=1e-5) and end - start > 9


def test_one_modality_from_two_sensors_is_refused() -> None:
    with pytest.raises(ValueError, match="every modality needs exactly one sensor"):
        LiveSource([lambda: Script(HAND), lambda: Script(HAND)], 25.0)


# -- serial --------------------------------------------------------------------------------------------------


@pytest.fixture
def wire() -> Iterator[tuple[int, str]]:
    """A pseudo-terminal: the far end's file descriptor and the near end's name."""
    far, near = pty.openpty()
    tty.setraw(near)
    name = os.ttyname(near)
    os.close(near)
    yield far, name
    os.close(far)


def test_lines_of_a_serial_port_become_samples(wire: tuple[int, str]) -> None:
    far, name = wire
    source = SerialSource(name, {"hand": (1, 2, 3), "light": (4,)}, 50.0, clock=0)
    source.open()
    lines = [f"{k / 50:.3f},{k},{-k},{2 * k};{100 + k}\r\n" for k in range(40)]
    lines[3] = "rubbish\r\n\r\n1,2\r\n" + lines[3]
    del lines[20:25]
    os.write(far, "".join(lines[:20]).encode())
    pieces = [source.read(2.0)]
    time.sleep(25 / 50)
    os.write(far, "".join(lines[20:]).encode())
    pieces += [source.read(2.0)]
    source.close()
    assert source.read(0) is None and source.ended
    first, second = pieces
    assert first is not None and second is not None
    hand = np.concatenate([first.streams["hand"], second.streams["hand"]])
    assert hand[:, 0].tolist() == [*range(20), *range(25, 40)]
    assert hand[7].tolist() == [7, -7, 14] and first.streams["light"][0, 0] == 100
    assert source.refused == 2
    assert (second.time - first.time) * 50 == pytest.approx(25.0)  # the lost lines are a gap, not a shift


def test_a_serial_port_that_is_pulled_or_missing_is_an_error_of_the_system(wire: tuple[int, str]) -> None:
    with pytest.raises(OSError, match="serial port /dev/no-such-port"):
        SerialSource("/dev/no-such-port", {"hand": (0,)}, 10.0).open()
    far, near = pty.openpty()
    source = SerialSource(os.ttyname(near), {"hand": (0,)}, 10.0)
    source.open()
    os.close(near)
    os.close(far)
    with pytest.raises(OSError, match="serial port"):
        source.read(2.0)
    source.close()
    source.read(0)


def test_a_wrong_speed_is_told_instead_of_filling_memory(wire: tuple[int, str]) -> None:
    far, name = wire
    source = SerialSource(name, {"hand": (0,)}, 10.0)
    source.open()
    threading.Thread(target=os.write, args=(far, b"\xfe" * 6000)).start()
    with pytest.raises(OSError, match="is 115200 baud right"):
        for _ in range(50):
            source.read(1.0)
    source.close()
    source.read(0)


# -- topics --------------------------------------------------------------------------------------------------


def test_messages_on_topics_become_samples_and_bad_ones_are_counted() -> None:
    asked: list[tuple[str, ...]] = []
    source = TopicSource("home/bob", (HAND, HEART), lambda t: asked.append(tuple(t)), lambda t: asked.append(tuple(t)))
    source.open()
    piece = Samples(1_700_000_000.0, 50.0, {"hand": np.arange(6, dtype=np.float32).reshape(2, 3)}, np.array([1, -1]))
    source.feed("home/bob/hand", encode(piece, "hand"))
    source.feed("home/bob/heart", b"72")
    source.feed("home/bob/other", b"72")
    source.feed("home/bob/heart", b"[72, 3]")
    source.feed("home/bob/hand", b"\xff\x00")
    source.feed("home/bob/hand", b'{"time": 1700000000000000000, "rate": 50, "values": [[1, 2, 3]]}')
    assert source.last_error == "hand: time is 1.7e+18 of 1 rows at 50 Hz, expected seconds"
    source.feed("home/bob/hand", b"[1, 2]")
    first, second = source.read(0), source.read(0)
    assert first and first.time == piece.time and (first.streams["hand"] == piece.streams["hand"]).all()
    assert first.labels.tolist() == [1, -1]
    assert second and second.streams["heart"].tolist() == [[72.0]] and abs(second.time - time.time()) < 1
    assert source.refused == 4 and "hand: expected 3 finite numbers" in source.last_error
    source.close()
    assert asked == [("home/bob/hand", "home/bob/heart")] * 2 and source.ended and source.read(0) is None


def test_what_nobody_reads_is_bounded_and_counted() -> None:
    source = TopicSource("a", (HEART,), lambda topics: None)
    for beat in range(1500):
        source.feed("a/heart", str(60 + beat % 20).encode())
    assert source.dropped == 500
    source.close()


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
    | st.dictionaries(st.sampled_from(["time", "rate", "values"]), st.floats() | st.lists(st.floats())).map(
        lambda v: json.dumps(v).encode()
    )
)
def test_bytes_from_strangers_are_samples_or_counted_and_raise_nothing(payload: bytes) -> None:
    source = TopicSource("a", (HAND,), lambda topics: None)
    source.feed("a/hand", payload)
    samples = source.read(0)
    assert (samples is None) == bool(source.refused)
    assert samples is None or samples.streams["hand"].shape[1] == 3
    source.close()


# -- Bluetooth -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "beats"),
    [
        (b"\x00\x48", 72.0),
        (b"\x16\x48\x00\x04", 72.0),  # contact detected, beat-to-beat times follow
        (b"\x01\x2c\x01", 300.0),
        (b"\x02\x48", None),  # the strap hangs in the air
    ],
)
def test_a_heart_rate_measurement_is_read_by_its_flags(data: bytes, beats: float | None) -> None:
    assert heart_rate(data) == beats


@given(st.binary(max_size=12))
def test_any_notification_is_a_heart_rate_or_one_error(data: bytes) -> None:
    try:
        beats = heart_rate(data)
    except ValueError:
        assert len(data) < 3
    else:
        assert beats is None or (0 <= beats <= 65535 and math.isfinite(beats))


def test_a_machine_without_bluetooth_is_an_error_of_the_system() -> None:
    if Path("/sys/class/bluetooth").exists():
        pytest.skip("this machine has Bluetooth; a strap may be near")
    source = HeartRateSource("no such strap", patience=1.0)
    with pytest.raises(OSError, match="heart rate strap no such strap: "):
        source.open()
    source.close()
    assert source.read(0) is None and source.ended
