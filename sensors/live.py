"""A device's own sensors as one source: each read in a thread of its own, on one grid, watched over.

A modality of which nothing is heard for `stall_s`, or whose sensor fails, is absent until it is heard again; a failed
sensor is made and opened anew with growing pauses. The others never wait for it, nor those that share its source.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from sensors.clock import astray
from sensors.inbox import Inbox
from sensors.recording import DataError, Modality
from sensors.resample import Resampler
from sensors.stream import Samples, Source

_LOOK = 0.5  # seconds between two looks at a silent sensor


class State(str, Enum):
    """What a sensor is doing."""

    STARTING = "starting"
    OK = "ok"
    STALLED = "stalled"
    DEAD = "dead"


@dataclass(frozen=True)
class Health:
    """How a modality's sensor does.

    reason     of a failure or of silence; beside `ok` it says why what is heard may be of no use
    gaps, late, lost    gaps and samples that came late since it was opened, and times that it went away
    """

    state: State = State.STARTING
    reason: str = ""
    gaps: int = 0
    late: int = 0
    lost: int = 0

    def plain(self) -> dict[str, Any]:
        """For telemetry: the state, and what else there is to tell."""
        return {"state": self.state.value} | {k: v for k, v in asdict(self).items() if v and k != "state"}


@dataclass
class _Sensor:
    """One physical source and the modalities it feeds."""

    make: Callable[[], Source]
    source: Source
    resamplers: dict[str, Resampler] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)  # modality -> monotonic time of its last sample


class LiveSource:
    """Sensors together as one Source at `rate_hz`.

    sensors    how to make each source; made once now, to know its modalities, and again after a failure
    changed    called from a sensor's thread whenever a modality's state changes or it gets a problem; must only enqueue
    stall_s    seconds of silence, at least five of its periods, until a modality counts as absent
    retry_s    first and longest pause before a failed sensor is opened again
    """

    def __init__(
        self,
        sensors: Sequence[Callable[[], Source]],
        rate_hz: float,
        *,
        changed: Callable[[], None] = lambda: None,
        stall_s: float = 3.0,
        retry_s: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        self._sensors = [_Sensor(make, make()) for make in sensors]
        native = [m for sensor in self._sensors for m in sensor.source.modalities]
        names = [m.name for m in native]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"sensors: every modality needs exactly one sensor; got {names}")
        self.modalities: tuple[Modality, ...] = tuple(replace(m, rate_hz=rate_hz) for m in native)
        self._rate, self._stall, self._retry = rate_hz, stall_s, retry_s
        self._changed = changed
        self._health = {name: Health() for name in names}
        self._lock = threading.Lock()
        self._inbox = Inbox()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    # -- a source --------------------------------------------------------------------------------

    def open(self) -> None:
        """Start all sensors; one that is not there yet is waited for, so this raises nothing."""
        for n, sensor in enumerate(self._sensors):
            self._threads.append(threading.Thread(target=self._run, args=(sensor,), name=f"sensor-{n}", daemon=True))
            self._threads[-1].start()

    def read(self, timeout: float | None = None) -> Samples | None:
        """The next piece of any modality, on the grid."""
        if self._closing.is_set():
            return None
        return self._inbox.get(timeout)

    @property
    def dropped(self) -> int:
        """Pieces that nobody read in time."""
        return self._inbox.dropped

    @property
    def ended(self) -> bool:
        return self._closing.is_set()

    def close(self) -> None:
        self._closing.set()
        for sensor in self._sensors:
            sensor.source.close()
        self._inbox.wake()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2.0)

    # -- health ----------------------------------------------------------------------------------

    @property
    def present(self) -> tuple[Modality, ...]:
        """The modalities whose sensors deliver now."""
        with self._lock:
            return tuple(m for m in self.modalities if self._health[m.name].state is State.OK)

    @property
    def health(self) -> Mapping[str, Health]:
        """Modality -> how its sensor does."""
        with self._lock:
            return dict(self._health)

    def _note(self, sensor: _Sensor, names: Iterable[str], state: State, reason: str = "") -> None:
        moved = False
        with self._lock:
            for name in names:
                before, resampler = self._health[name], sensor.resamplers.get(name)
                gaps, late = (resampler.gaps, resampler.late) if resampler else (before.gaps, before.late)
                left = before.state is State.OK and state is not State.OK
                self._health[name] = Health(state, reason, gaps, late, before.lost + left)
                moved |= (before.state, bool(before.reason)) != (state, bool(reason))
        if moved:
            self._changed()

    # -- a sensor's thread -----------------------------------------------------------------------

    def _run(self, sensor: _Sensor) -> None:
        pause, failed = self._retry[0], False
        while not self._closing.is_set():
            sensor.heard = {}
            try:
                if failed:
                    sensor.source = sensor.make()
                self._listen(sensor)
                reason = "it ended"
            except (OSError, DataError, ValueError) as error:
                reason = str(error)
            except Exception as error:  # of a source of another package: its thread must not end in silence
                reason = repr(error)
            if self._closing.is_set():
                break
            self._note(sensor, [m.name for m in sensor.source.modalities], State.DEAD, reason)
            with contextlib.suppress(OSError):
                sensor.source.close()
            failed = True
            if sensor.heard:
                pause = self._retry[0]
            self._closing.wait(pause)
            pause = min(2 * pause, self._retry[1])
        with contextlib.suppress(OSError):
            sensor.source.close()

    def _listen(self, sensor: _Sensor) -> None:
        source = sensor.source
        source.open()
        sensor.resamplers = {m.name: Resampler(self._rate, m.rate_hz or self._rate) for m in source.modalities}
        patience = {m.name: max(self._stall, 5 / (m.rate_hz or self._rate)) for m in source.modalities}
        opened = time.monotonic()
        while not self._closing.is_set() and not source.ended:
            samples = source.read(_LOOK)
            now = time.monotonic()
            if samples is not None and len(samples):
                self._take(sensor, samples)
                sensor.heard.update(dict.fromkeys(samples.streams, now))
            for name, longest in patience.items():
                silent = now - sensor.heard.get(name, opened)
                if silent > longest:
                    refused = getattr(source, "last_error", "")  # of a source that refuses what it cannot read
                    why = f"nothing for {silent:.0f} s{refused and '; last refused: '}{refused}"
                    self._note(sensor, [name], State.STALLED, why)

    def _take(self, sensor: _Sensor, samples: Samples) -> None:
        known = {name: stream for name, stream in samples.streams.items() if name in sensor.resamplers}
        times = samples.time + np.arange(len(samples)) / samples.rate_hz
        for name, stream in known.items():
            resampler = sensor.resamplers[name]
            if self._health[name].state is not State.OK:
                resampler.reset()
            for tick, values in resampler.push(times, stream):
                labels = samples.labels
                if len(labels):
                    nearest = np.round((np.arange(tick, tick + len(values)) / self._rate - times[0]) * samples.rate_hz)
                    labels = labels[np.clip(nearest.astype(int), 0, len(labels) - 1)]
                self._inbox.put(Samples(tick / self._rate, self._rate, {name: values}, labels))
        self._note(sensor, known, State.OK, astray(samples, time.time()))
