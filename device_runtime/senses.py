"""The configured source made into a stream of windows."""

from __future__ import annotations

from device_runtime.config import DeviceConfig
from device_runtime.sensing import Ring, Stream
from protocol.errors import ConfigError
from sensors.locate import find
from sensors.replay import ReplaySource


def replayed(config: DeviceConfig) -> tuple[Stream, str]:
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
    ring = Ring(source.modalities, dataset.rate_hz, window_s, overlap, capacity=s.windows, subject=s.subject)
    return Stream(source, ring), found.note
