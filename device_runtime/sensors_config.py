"""A device's own sensors in the configuration file, and how each becomes a source."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

from pydantic import Field, model_validator

from protocol.config import BrokerConfig, Section
from protocol.connection import connection
from protocol.transport import Connected, Event, Received, Stopped, Transport
from sensors.iio import IioPolling
from sensors.iio_buffer import IioBuffered
from sensors.mqtt_source import TopicSource
from sensors.recording import Modality
from sensors.stream import Samples, Source

KINDS = ("iio", "iio-poll", "ble", "serial", "topic")


class SensorConfig(Section):
    """One sensor.

    kind          iio (buffered), iio-poll, ble (heart rate), serial, topic, or an entry point of `relief.sensors`
    where         IIO device's name, strap's address or name, serial port, or topic prefix
    modalities    name -> its channels: IIO channels (accel_x), columns of a line ("1"), or names of a topic's values
    rate_hz       samples per second; 0: as an IIO device is set
    trigger       IIO trigger; baud, clock    serial speed, and the column that holds the sender's seconds
    broker        where topics are, if not at the fleet's broker
    """

    kind: str
    where: Annotated[str, Field(min_length=1)]
    modalities: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    rate_hz: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    trigger: str = ""
    baud: Annotated[int, Field(ge=300)] = 115200
    clock: Annotated[int, Field(ge=0)] | None = None
    broker: BrokerConfig | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> SensorConfig:
        if self.kind not in KINDS and self.kind not in (known := _installed()):
            raise ValueError(f"kind {self.kind!r}: choose one of {', '.join((*KINDS, *sorted(known)))}")
        if self.kind in ("iio-poll", "serial", "topic") and not self.rate_hz:
            raise ValueError(f"rate_hz: a sensor of kind {self.kind} needs its samples per second")
        if self.kind in ("ble", "iio-poll") and len(self.modalities) != 1:
            raise ValueError(f"modalities: a sensor of kind {self.kind} feeds exactly one")
        if self.kind == "serial" and not all(c.isdigit() for own in self.modalities.values() for c in own):
            raise ValueError('modalities: columns of a serial line are numbers from 0, such as ["1", "2", "3"]')
        return self


class LiveConfig(Section):
    """The device's own sensors and what is made of them.

    rate_hz, window_s, overlap   the model's; every sensor is brought to this rate
    patience_s    seconds that an operator's label may come late
    stall_s       seconds of silence after which a sensor counts as absent
    """

    sensors: Annotated[tuple[SensorConfig, ...], Field(min_length=1)]
    rate_hz: Annotated[float, Field(gt=0, le=10_000)]
    window_s: Annotated[float, Field(gt=0)]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    patience_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    stall_s: Annotated[float, Field(gt=0)] = 3.0


def maker(config: SensorConfig, broker: BrokerConfig, identity: str) -> Callable[[], Source]:
    """How to make the sensor's source; `identity` is the device's name at the broker.

    ValueError for topics at a fleet's broker that knows its parties by certificate.
    """
    name, channels = next(iter(config.modalities.items()))
    if config.kind == "iio":
        wanted = dict(config.modalities)
        return lambda: IioBuffered(config.where, wanted, config.rate_hz, trigger=config.trigger)
    if config.kind == "iio-poll":
        return lambda: IioPolling(config.where, channels, name, config.rate_hz)
    if config.kind == "topic":
        if config.broker is None and broker.cert:
            raise ValueError(
                f"topic {config.where}: give the sensor a broker of its own. The fleet's takes the certificate's name "
                "for the client id, so that this connection and the device's would throw each other out"
            )
        modalities = [Modality(m, c, "", config.rate_hz) for m, c in config.modalities.items()]
        return lambda: Topics(config.where, modalities, config.broker or broker, f"{identity}-sensors-{name}")
    if config.kind == "ble":
        from sensors.ble import HeartRateSource

        return lambda: HeartRateSource(config.where, name)
    if config.kind not in KINDS:
        own = _installed()[config.kind].load()
        return lambda: own(config.where, dict(config.modalities), config.rate_hz)
    from sensors.serial_line import SerialSource

    columns = {m: [int(c) for c in own] for m, own in config.modalities.items()}
    return lambda: SerialSource(config.where, columns, config.rate_hz, baud=config.baud, clock=config.clock)


def _installed() -> dict[str, EntryPoint]:
    """Kinds of other packages: each is called as (where, modalities, rate_hz) and gives a Source."""
    return {e.name: e for e in entry_points(group="relief.sensors")}


class Topics(TopicSource):
    """Topics over a connection of their own, so that a flood of samples never delays the fleet's business.

    identity    at the broker, where no other connection may have it: a device has one for every sensor
    """

    def __init__(self, prefix: str, modalities: list[Modality], broker: BrokerConfig, identity: str) -> None:
        super().__init__(prefix, modalities, lambda topics: None)
        self._broker, self._identity = broker, identity
        self._transport: Transport | None = None
        self._stopped = ""  # why the transport has given up

    def open(self) -> None:
        """Connect; the topics are asked for whenever the connection is made. OSError where it cannot be."""
        try:
            self._transport = connection(self._broker, self._identity)
            self._transport.open(self._event)
        except ValueError as error:
            raise OSError(str(error)) from None

    def read(self, timeout: float | None = None) -> Samples | None:
        """The next piece. OSError once the transport has given up: only another one can connect again."""
        samples = super().read(timeout)
        if samples is None and self._stopped:
            raise OSError(self._stopped)
        return samples

    def close(self) -> None:
        super().close()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _event(self, event: Event) -> None:
        transport = self._transport
        if isinstance(event, Received):
            self.feed(event.topic, event.payload)
        elif isinstance(event, Connected) and transport is not None:
            transport.subscribe(*self.topics)
        elif isinstance(event, Stopped):
            self._stopped = event.reason
            self._inbox.wake()
