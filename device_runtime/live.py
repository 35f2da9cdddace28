"""Sensing with a device's own sensors, any of which may be absent for a while.

One ring per set of sensors that delivered together: windows cut while a sensor was absent lack it, so they are training
windows for as long as it stays away, and those from before keep counting, seen without it. When it is back, windows of
the full set count again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from device_runtime.sensing import WAIT, Labelled, Ring, lost
from device_runtime.sensors_config import LiveConfig, maker
from protocol.config import BrokerConfig
from protocol.messages import Label
from sensors.live import Health, LiveSource
from sensors.recording import Floats, Modality
from sensors.stream import Samples, Source

log = logging.getLogger("relief.device")

_APART = 40  # bits: ids of a ring's windows lie this far from those of the next ring
_RINGS = 4  # sets of sensors whose windows are kept; with more, the one that was not used for longest goes
Names = tuple[str, ...]


class LiveSensing:
    """Meets device_runtime.sensing.Sensing.

    capacity    windows kept in all: half of them with all sensors, the rest shared by what else there was
    """

    def __init__(
        self, sensors: Sequence[Callable[[], Source]], config: LiveConfig, *, subject: str, capacity: int = 4096
    ) -> None:
        self._config, self._subject, self._capacity = config, subject, capacity
        self._source = LiveSource(sensors, config.rate_hz, stall_s=config.stall_s, changed=self._moved)
        self._rings: dict[Names, Ring] = {}  # the one used last stands last
        self._numbers: dict[Names, int] = {}
        self._pushed: dict[Names, float] = {}  # ring -> monotonic time of its last piece; gone once it was flushed
        self._lock = threading.Lock()
        self._current: Names = ()
        self._next_number = 0
        self._told: dict[str, tuple[str, bool]] = {}  # modality -> state, whether there was a reason
        self._cut = 0
        self._changed: Callable[[], None] = lambda: None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    # -- what the runtime asks -------------------------------------------------------------------

    def open(self, changed: Callable[[], None]) -> None:
        """Start sensing; sensors that are not there yet are waited for."""
        self._changed = changed
        self._source.open()
        self._thread = threading.Thread(target=self._run, name="sensing", daemon=True)
        self._thread.start()

    @property
    def modalities(self) -> dict[str, int]:
        """What delivers now: modality -> channels."""
        return {m.name: len(m.channels) for m in self._source.present}

    @property
    def health(self) -> Mapping[str, Health]:
        """Modality -> how its sensor does."""
        return self._source.health

    @property
    def count(self) -> int:
        with self._lock:
            return sum(ring.count for names, ring in self._rings.items() if self._usable(names))

    def labelled(self) -> Labelled:
        """Windows of all rings whose sensors include those present now, seen through the present ones."""
        with self._lock:
            held = [(self._numbers[n], ring.labelled()) for n, ring in self._rings.items() if self._usable(n)]
            now = self._current
        held.sort(key=lambda pair: pair[0])
        if not held:
            return Labelled({}, np.empty(0, np.int64), np.empty(0, np.int64))
        return Labelled(
            {name: np.concatenate([windows.x[name] for _, windows in held]) for name in now},
            np.concatenate([windows.y for _, windows in held]),
            np.concatenate([windows.ids + (n << _APART) for n, windows in held]),
        )

    def latest(self) -> tuple[float, float, dict[str, Floats]] | None:
        """Start, end and windows (1, channels, samples) of the newest stretch of the present sensors, for inference.

        None until something has come since the last sensor came or went: what its ring holds may be hours old.
        """
        with self._lock:
            names = next(reversed(self._rings), ())
            ring = self._rings[names] if names and names == self._current else None
        return ring.latest() if ring else None

    def told(self) -> dict[str, Any]:
        """For telemetry: `sensors`, modality -> how it does, and what was lost on the way to the windows held."""
        with self._lock:
            rings = list(self._rings.values())
        return {"sensors": {name: h.plain() for name, h in self.health.items()}, **lost(rings)}

    def annotate(self, label: Label) -> None:
        """Join an operator's label to what was sensed meanwhile, up to `patience_s` ago."""
        with self._lock:
            rings = list(self._rings.values())
        end = min(label.end, time.time())  # what has not been sensed yet cannot be labelled
        for ring in rings:
            if label.start < end:
                ring.annotate(label.start, end, label.label)

    def close(self) -> None:
        """Stop; returns once the threads have ended."""
        self._closing.set()
        self._source.close()
        if self._thread:
            self._thread.join(2 * WAIT)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            samples = self._source.read(WAIT)
            if samples is not None:
                self._push(samples)
            self._settle()

    def _push(self, samples: Samples) -> None:
        with self._lock:
            present = self._source.present
            self._current = tuple(m.name for m in present)
            if not set(samples.streams) <= set(self._current):
                return  # its sensor has just gone
            ring = self._rings.pop(self._current, None) or self._new_ring(present)
            self._rings[self._current] = ring
            self._pushed[self._current] = time.monotonic()
            ring.push(samples)

    def _settle(self) -> None:
        """Cut what rings still hold back for late labels once their time has passed; tell of new windows."""
        with self._lock:
            over = time.monotonic() - self._config.patience_s
            done = [names for names, at in self._pushed.items() if names != self._current and at < over]
            for names in done:
                del self._pushed[names]
            rings = [self._rings[names] for names in done]
        for ring in rings:
            ring.flush()
        with self._lock:
            cut = sum(ring.cut for ring in self._rings.values())
        if cut != self._cut:
            self._cut = cut
            self._changed()

    def _new_ring(self, present: tuple[Modality, ...]) -> Ring:
        config, names = self._config, self._current
        whole = len(names) == len(self._source.modalities)
        if len(self._rings) >= _RINGS:
            oldest = next(iter(self._rings))
            del self._rings[oldest], self._numbers[oldest]
            self._pushed.pop(oldest, None)
        self._numbers[names] = self._next_number
        self._next_number += 1
        log.info("sensors: %s", ", ".join(names))
        return Ring(
            present,
            config.rate_hz,
            config.window_s,
            config.overlap,
            capacity=max(1, self._capacity // (2 if whole else 2 * _RINGS - 2)),
            subject=self._subject,
            patience_s=config.patience_s,
        )

    def _usable(self, names: Names) -> bool:
        return bool(self._current) and set(self._current) <= set(names)

    def _moved(self) -> None:
        """A sensor came or went, or has a problem; called from its thread."""
        health = self._source.health
        with self._lock:
            told, self._told = self._told, {name: (h.state, bool(h.reason)) for name, h in health.items()}
            self._current = tuple(m.name for m in self._source.present)
        for name, h in health.items():
            if h.reason and told.get(name) != (h.state, True):
                log.warning("sensor of %s: %s", name, h.reason)
        self._changed()


def live(config: LiveConfig, broker: BrokerConfig, device: str, memory: int) -> LiveSensing:
    """The configured sensors; `memory` bytes bound their windows. ValueError for a modality that two sensors feed."""
    channels = sum(max(1, len(own)) for sensor in config.sensors for own in sensor.modalities.values())
    each = channels * round(config.window_s * config.rate_hz) * 4  # bytes of a window
    makers = [maker(sensor, broker, device) for sensor in config.sensors]
    return LiveSensing(makers, config, subject=device, capacity=max(1, memory // each))
