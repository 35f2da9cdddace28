"""`relief replay`: recordings played onto sensor topics, for any MQTT client and for our own topic source."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from protocol.config import BrokerConfig, Party, load
from protocol.errors import Congested, Unavailable
from protocol.topics import check_name
from protocol.transport import Connected, Event, Lost, Stopped, Transport
from protocol.waiting import take
from sensors.locate import NAMES, find
from sensors.replay import ReplaySource
from sensors.wire import ABOUT, about, encode
from tools.shown import progress

CONNECT_S = 30.0
AWAKE_S = 0.001  # before a piece is due; it takes a third off how late pieces are on a busy machine
CONGESTED_S = 0.005  # pause before a publish that the broker had no room for is tried again


@dataclass
class Played:
    """What a replay did. `late` has the seconds between when each piece was due and when it was handed over."""

    pieces: int = 0
    seconds: float = 0.0  # of recording
    bytes: int = 0
    late: list[float] = field(default_factory=list)

    def lateness(self, quantile: float) -> float:
        """Seconds within which that part of the pieces was on time; 0 at full speed, where nothing is ever due."""
        ordered = sorted(self.late)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0.0


class Config(Party):
    """What a replay reads of a configuration file."""

    broker: BrokerConfig = BrokerConfig()


def publish_all(
    source: ReplaySource,
    transport: Transport,
    prefix: str,
    activities: Sequence[str],
    stop: threading.Event,
    told: Callable[[float], None] = lambda seconds: None,
    *,
    dated: bool = False,
) -> Played:
    """Play an unopened source onto <prefix>/<modality> until it ends or `stop` is set. The transport is open.

    told     called after every piece with the seconds of recording played so far
    dated    the times published are seconds since the epoch, else since the replay began
    """
    transport.publish(f"{prefix}/{ABOUT}", about(source.modalities, activities), retain=True)
    played = Played()
    source.open()
    began = time.time() if dated else 0.0  # not earlier: the first recording may have taken long to load
    while (samples := source.upcoming) is not None:
        sent = replace(samples, time=samples.time + began)
        payloads = {m: encode(sent, m) for m in sent.streams}  # while there is time: it is not due yet
        taken = None
        while taken is None and not stop.is_set() and not source.ended:
            taken = source.read(0.2)
        if taken is None:
            break
        for modality, payload in payloads.items():
            _publish(transport, f"{prefix}/{modality}", payload, stop)
            played.bytes += len(payload)
        if (due := source.due(samples)) > 0:
            played.late.append(time.monotonic() - due)
        played.pieces += 1
        played.seconds += len(samples) / samples.rate_hz
        told(played.seconds)
    source.close()
    return played


def _publish(transport: Transport, topic: str, payload: bytes, stop: threading.Event) -> None:
    """Publish, waiting where the broker is slower than we are."""
    while not stop.is_set():
        try:
            transport.publish(topic, payload)
            return
        except Congested:
            stop.wait(CONGESTED_S)


def wait_for(events: queue.SimpleQueue[Event], where: str, seconds: float) -> None:
    """Until the connection is up. Raises Unavailable with the last reason."""
    until, reason = time.monotonic() + seconds, "no answer"
    while (left := until - time.monotonic()) > 0:
        try:
            event = take(events, left)
        except queue.Empty:
            break
        if isinstance(event, Connected):
            return
        if isinstance(event, (Lost, Stopped)):
            reason = event.reason
            if isinstance(event, Stopped):
                break
    raise Unavailable(where, reason)


def speed_of(text: str) -> float:
    """A pace as it is written: a number of times the recorded one, or max."""
    if text == "max":
        return float("inf")
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise ValueError(f"--speed {text}: expected a number above 0 (1 is the recorded pace) or max")
    return speed


def replay(
    dataset: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}.")],
    subject: Annotated[str | None, typer.Option(help="Whose recording.", show_default="the first")] = None,
    speed: Annotated[str, typer.Option(help="Times the recorded pace, or max.")] = "1",
    modality: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Topics are PREFIX/MODALITY.", show_default="sensors/SET/SUBJECT")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help=r"TOML file with a \[broker] section.")] = None,
    host: Annotated[str | None, typer.Option(help="The broker, where no file says.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Its port, where no file says.")] = None,
    piece: Annotated[float, typer.Option(help="Seconds of samples in one message.", min=0.01, max=10)] = 0.2,
    loop: Annotated[bool, typer.Option(help="Begin again at the end.")] = False,
    name: Annotated[str, typer.Option(help="Tells several replays on one broker apart.")] = "1",
) -> None:
    """Publish a subject's recordings as sensor topics, in JSON, paced like the sensors were or faster.

    Example: relief replay dsads --subject 1 --speed 10
    """
    from protocol.mqtt import MqttTransport

    pace, found = speed_of(speed), find(dataset)
    who = subject or found.dataset.subjects()[0]
    if who not in found.dataset.subjects():
        raise ValueError(f"{dataset} has no subject {who!r}: expected one of {', '.join(found.dataset.subjects())}")
    broker = (load(config, Config) if config else Config()).broker
    changed = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    broker = broker.model_copy(update={**changed, "inflight": 100, "queue_bytes": 1 << 20})
    source = ReplaySource(found.dataset, who, modality, speed=pace, piece_s=piece, loop=loop, awake_s=AWAKE_S)
    where = prefix or f"sensors/{found.dataset.name}/{who}"
    print(found.note)
    print(f"playing {', '.join(m.name for m in source.modalities)} onto {where}/... at {broker.where}")
    # All of it has to be read to know how long it is: for somebody who watches only.
    total = source.seconds() if sys.stderr.isatty() and not loop else None
    transport = MqttTransport(broker, f"operator-{check_name(name, 'name')}-replay")
    stop, events = threading.Event(), queue.SimpleQueue[Event]()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    transport.open(events.put)
    began = time.monotonic()
    try:
        wait_for(events, broker.where, CONNECT_S)
        with progress("playing", total, "s") as step:
            played = publish_all(
                source, transport, where, found.dataset.activities, stop,
                lambda seconds: step(seconds, "" if total else f"{seconds:.0f} s of recording"), dated=pace == 1.0,
            )  # fmt: skip
    finally:
        transport.close()
    print(headline(played, time.monotonic() - began))


def headline(played: Played, took: float) -> str:
    """The last line that a replay prints."""
    lateness = (
        f"; late by {1e3 * played.lateness(0.5):.2f} ms in the middle, {1e3 * played.lateness(0.99):.2f} ms at 99 %, "
        f"{1e3 * played.lateness(1.0):.2f} ms at most"
        if played.late
        else ""
    )
    return (
        f"{played.seconds:.1f} s of recording in {took:.1f} s, {played.pieces} pieces, "
        f"{played.bytes / 1e6:.2f} MB{lateness}"
    )
