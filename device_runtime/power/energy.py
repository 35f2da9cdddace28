"""Energy from power: one thread, ten samples a second, trapezoids on the monotonic clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from device_runtime.power.monitor import Monitor, PowerError, Sample, now

_LONGEST = 3.0  # seconds that a sample may stand for; beyond, the time counts as missing
_RETRY = 5.0  # seconds between attempts to get a dead source back


@dataclass(frozen=True)
class Energy:
    """What was used over a stretch of time.

    joules    the total over the `seconds` that were covered by samples
    active    joules above idle, never negative
    missing   seconds without any sample; their joules are unknown and in neither figure
    source    where it was measured; several joined by + if it changed on the way
    """

    joules: float
    active: float
    seconds: float
    missing: float
    source: str

    @property
    def active_watts(self) -> float:
        return self.active / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Mark:
    """A moment from which energy is counted."""

    t: float
    joules: float
    seconds: float


class Meter:
    """Samples `monitor` (already open) from `start` to `stop`, which closes it.

    again        finds another source when this one stays dead; without it the same one is opened again
    idle_watts   what the board draws without our work; set by hand or by `measure_idle`
    """

    def __init__(
        self, monitor: Monitor, *, hz: float = 10.0, idle_watts: float = 0.0, again: Callable[[], Monitor] | None = None
    ) -> None:
        self.idle_watts = idle_watts
        self._monitor, self._period, self._again = monitor, 1.0 / hz, again
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._joules = self._seconds = 0.0
        self._began = 0.0
        self._latest: Sample | None = None
        self._sources: dict[str, float] = {}  # source -> monotonic time of its last sample
        self.errors = 0  # samples that could not be had
        self.last_error = ""

    def start(self) -> None:
        """Begin to count from zero."""
        if self._thread is not None:
            raise RuntimeError("this meter is running already; make a new one")
        self._began = now()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()

    def stop(self) -> Energy:
        """End the thread, close the monitor and return the energy since `start`."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._monitor.close()
        return self.since(Mark(self._began, 0.0, 0.0))

    # -- reading ---------------------------------------------------------------------------------

    def latest(self) -> Sample | None:
        """The newest sample, or None before the first and while the source is dead."""
        with self._lock:
            fresh = self._latest is not None and now() - self._latest.t < _LONGEST
            return self._latest if fresh else None

    def mark(self) -> Mark:
        """Remember this moment for `since`."""
        joules, seconds = self._now()
        return Mark(now(), joules, seconds)

    def since(self, mark: Mark) -> Energy:
        """Energy between `mark` and now."""
        joules, seconds = self._now()
        with self._lock:
            sources = sorted(name for name, t in self._sources.items() if t >= mark.t - _LONGEST)
        joules, seconds = max(0.0, joules - mark.joules), max(0.0, seconds - mark.seconds)
        end = now() if not self._over.is_set() else mark.t + seconds
        missing = max(0.0, end - mark.t - seconds)
        active = max(0.0, joules - self.idle_watts * seconds)
        return Energy(joules, active, seconds, missing, "+".join(sources) or "none")

    def measure_idle(self, seconds: float = 3.0) -> float:
        """Wait, take the mean watts as idle and return them (unchanged if nothing could be read)."""
        mark = self.mark()
        self._over.wait(seconds)
        rest = self.since(mark)
        if rest.seconds:
            self.idle_watts = rest.joules / rest.seconds
        return self.idle_watts

    def _now(self) -> tuple[float, float]:
        """(joules, seconds) with the time since the last sample at its watts, so that short work is not lost."""
        with self._lock:
            joules, seconds, latest = self._joules, self._seconds, self._latest
        if latest is None or self._over.is_set():
            return joules, seconds
        tail = min(max(0.0, now() - latest.t), _LONGEST)
        return joules + latest.watts * tail, seconds + tail

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        due, retry = now(), 0.0
        while not self._over.is_set():
            try:
                self._add(self._monitor.read())
                retry = 0.0
            except PowerError as error:
                self.errors, self.last_error = self.errors + 1, str(error)
                retry = retry or now() + _RETRY
                if now() >= retry:
                    self._reopen()
                    retry = 0.0
            due = max(due + self._period, now())  # a late sample delays the next ones instead of bunching them
            self._over.wait(due - now())

    def _add(self, sample: Sample) -> None:
        with self._lock:
            last, self._latest = self._latest, sample
            self._sources[sample.source] = now()
            start = self._began if last is None else last.t
            span = sample.t - start
            if span <= 0:
                return  # the same sample again
            if last is None:
                span = min(span, _LONGEST)
                self._joules += sample.watts * span
            elif span > _LONGEST:
                span = _LONGEST  # held at its last watts for that long, as `_now` does; the rest is missing
                self._joules += last.watts * span
            elif sample.counter is not None and last.counter is not None and sample.counter >= last.counter:
                self._joules += sample.counter - last.counter
            else:
                self._joules += (last.watts + sample.watts) / 2 * span
            self._seconds += span

    def _reopen(self) -> None:
        self._monitor.close()
        try:
            if self._again is not None:
                self._monitor = self._again()
            else:
                self._monitor.open()
        except PowerError as error:
            self.last_error = str(error)


class Allowance:
    """A budget in joules above idle, asked at every step border: `spent()` is True when one more step would exceed it.

    Usable as a trainer's `stop`. The next step is taken to cost as much as the dearest so far; seconds without samples
    are charged at the mean power, so that a dead monitor is no licence to go on.
    """

    def __init__(self, meter: Meter, joules: float) -> None:
        self._meter, self._limit = meter, joules
        self._mark = meter.mark()
        self._last = self._dearest = 0.0

    def used(self) -> float:
        """Joules charged so far."""
        energy = self._meter.since(self._mark)
        return energy.active * (1 + energy.missing / energy.seconds) if energy.seconds else 0.0

    def spent(self) -> bool:
        used = self.used()
        self._dearest = max(self._dearest, used - self._last)
        self._last = used
        return used + self._dearest > self._limit

    __call__ = spent


def attributed(energy: Energy, block_seconds: Mapping[str, float]) -> dict[str, float]:
    """Joules per block: watts above idle x the block's measured seconds. Attributed: no rail knows of blocks."""
    return {block: energy.active_watts * seconds for block, seconds in block_seconds.items()}
