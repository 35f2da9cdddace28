"""The body that wears a live device: its recording played onto sensor topics, its activities told by an operator."""

from __future__ import annotations

import contextlib
import threading
import time
from itertools import pairwise

import numpy as np

from protocol.config import BrokerConfig
from protocol.errors import Congested
from protocol.messages import Label
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from sensors.recording import UNLABELLED, DataSet
from sensors.replay import ReplaySource
from sensors.wire import encode
from tools.demo.plan import DemoDevice

SPEED = 20.0  # seconds of recording a second: a run of minutes sees as much as a device does in an hour
PAST = 6 * 3600.0  # seconds ago at which the recording begins, so that it never plays into the future


def live_section(text: str, device: DemoDevice, dataset: DataSet, port: int) -> str:
    """The configuration with this device's recording replaced by live sensors on topics."""
    begin = text.index("[device.source]", text.index(f'id = "{device.id}"'))
    following = text.find("[[device]]", begin)
    rest = text[following:] if following >= 0 else ""
    channels = {m.name: m.channels for m in dataset.modalities if m.name in device.modalities}
    described = ", ".join(f"{name} = [{', '.join(map(repr, own))}]" for name, own in channels.items())
    section = [
        "[device.live]",
        f"rate_hz = {dataset.rate_hz}",
        f"window_s = {dataset.window_s}",
        "overlap = 0.5",
        "patience_s = 300",
        "stall_s = 1.5",
        "[[device.live.sensors]]",
        'kind = "topic"',
        f'where = "soak/{device.id}"',
        f"rate_hz = {dataset.rate_hz}",
        "modalities = { " + described.replace("'", '"') + " }",
    ]
    return text[:begin] + "\n".join(section) + "\n\n" + rest


class Feeder:
    """Plays `device`'s share, over and over, on a connection of its own; labels come `late` seconds after the fact."""

    def __init__(self, device: DemoDevice, dataset: DataSet, port: int, fleet: str, late: float) -> None:
        self.device, self._late = device, late
        self._topic = Topics(fleet).device(device.id, "label")
        self._origin = time.time() - PAST
        self._source = ReplaySource(
            dataset,
            device.subject,
            device.modalities,
            part=device.part,
            speed=SPEED,
            piece_s=2.0,
            origin=self._origin,
            loop=True,
        )
        self._transport = MqttTransport(BrokerConfig(port=port), f"operator-soak-{device.id}")
        self._silent: dict[str, float] = {}  # modality -> monotonic time until which its sensor says nothing
        self._spans: list[tuple[float, Label]] = []  # monotonic time at which a label is due
        self._thread = threading.Thread(target=self._run, name=f"feeder-{device.id}", daemon=True)

    def start(self) -> None:
        self._transport.open(lambda event: None)
        self._source.open()
        self._thread.start()

    def silence(self, modality: str, seconds: float) -> None:
        """The sensor of `modality` falls silent for a while."""
        self._silent[modality] = time.monotonic() + seconds

    def stop(self) -> None:
        self._source.close()
        if self._thread.is_alive():
            self._thread.join()
        self._transport.close()

    def _run(self) -> None:
        while not self._source.ended:
            samples = self._source.read(0.5)
            if samples is None:
                continue
            now = time.monotonic()
            bare = type(samples)(
                samples.time, samples.rate_hz, samples.streams
            )  # whoever wears it knows, sensors do not
            for name in samples.streams:
                if now >= self._silent.get(name, 0.0):
                    self._publish(f"soak/{self.device.id}/{name}", encode(bare, name), qos=0)
            self._notice(samples.time, samples.rate_hz, samples.labels, now)
            while self._spans and self._spans[0][0] <= now:
                self._publish(self._topic, self._spans.pop(0)[1].encode(), qos=1)

    def _notice(self, at: float, rate: float, labels: np.ndarray, now: float) -> None:
        """Put down what activity the samples show, piece by piece."""
        borders = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
        for begin, end in pairwise(borders):
            if labels[begin] != UNLABELLED:
                label = Label(start=at + begin / rate, end=at + end / rate, label=int(labels[begin]))
                self._spans.append((now + self._late, label))

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        with contextlib.suppress(Congested):  # a sensor does not wait
            self._transport.publish(topic, payload, qos=qos)
