"""What is configured made into a device's senses: its own sensors, or a recording played as if it were sensed."""

from __future__ import annotations

from device_runtime.config import DeviceConfig
from device_runtime.live import live
from device_runtime.sensing import Ring, Sensing, Stream
from protocol.config import BrokerConfig
from protocol.errors import ConfigError
from sensors.locate import find
from sensors.replay import ReplaySource

ENOUGH = 16  # windows that a device keeps which will never train on them


def senses(config: DeviceConfig, broker: BrokerConfig, *, trains: bool) -> tuple[Sensing, str]:
    """The device's senses, not yet open, and one line that says what they are. ConfigError."""
    if config.live is None:
        return replayed(config, trains=trains)
    names = [m for sensor in config.live.sensors for m in sensor.modalities]
    try:
        return live(config.live, broker, config.id, config.memory), f"own sensors for {', '.join(names)}"
    except ValueError as error:
        raise ConfigError(f"device {config.id}", [f"live: {error}"]) from None


def replayed(config: DeviceConfig, *, trains: bool) -> tuple[Stream, str]:
    """A recording as live sensors, and one line that says which. ConfigError for a subject or modality it lacks."""
    s = config.source
    found = find(s.dataset)
    dataset = found.dataset
    where = f"device {config.id}"
    if s.subject not in dataset.subjects():
        known = ", ".join(dataset.subjects())
        raise ConfigError(where, [f"source.subject = {s.subject!r}: {dataset.name} has {known}"])
    names = config.modalities or tuple(m.name for m in dataset.modalities)
    try:
        source = ReplaySource(dataset, s.subject, names, part=s.part, speed=s.speed, loop=s.loop)
    except ValueError as error:
        raise ConfigError(where, [f"modalities: {error}"]) from None
    overlap = dataset.overlap if s.overlap is None else s.overlap
    window_s = s.window_s or dataset.window_s
    channels = sum(len(m.channels) for m in source.modalities)
    each = channels * round(window_s * dataset.rate_hz) * 4  # bytes of a window
    capacity = max(1, config.memory // each) if trains else ENOUGH
    ring = Ring(source.modalities, dataset.rate_hz, window_s, overlap, capacity=capacity, subject=s.subject)
    return Stream(source, ring), found.note
