"""Two sensors of one's own: a data set that devices replay, and a live source that they read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sensors.recording import Modality, Recording
from sensors.stream import Samples

RATE_HZ = 20.0


class Treadmill:
    """A data set: walking and running, felt at both feet. Anything with these members can be one."""

    name = "treadmill"
    rate_hz, window_s, overlap = RATE_HZ, 1.6, 0.5
    activities = ("walking", "running")
    modalities = tuple(Modality(foot, ("up",), "g", RATE_HZ) for foot in ("left_foot", "right_foot"))

    def subjects(self) -> tuple[str, ...]:
        return ("anna", "ben")

    def recordings(self, subject: str) -> Iterator[Recording]:
        """Steps of 1.6 Hz when walking, 2.7 Hz when running; the right foot lands half a step later."""
        rng = np.random.default_rng(len(subject))
        for label, steps in enumerate((1.6, 2.7)):
            t = np.arange(60 * RATE_HZ) / RATE_HZ
            noise = 0.2 * rng.standard_normal((2, len(t)))
            feet = [np.sin(2 * np.pi * (steps * t + shift)) + n for shift, n in zip((0.0, 0.5), noise, strict=True)]
            yield Recording(
                subject=subject,
                rate_hz=RATE_HZ,
                labels=np.full(len(t), label),
                streams={m.name: foot[:, None].astype("f4") for m, foot in zip(self.modalities, feet, strict=True)},
            )


class Metronome:
    """A live source: a pulse per beat, `where` is the number of beats per minute.

    Used in a device's configuration as kind = "metronome"; `open`, `read`, `ended` and `close` are all it takes.
    """

    def __init__(self, where: str, modalities: Mapping[str, Sequence[str]], rate_hz: float) -> None:
        self.modalities = tuple(Modality(name, tuple(own), "", rate_hz) for name, own in modalities.items())
        self._beat_s, self._rate_hz = 60.0 / float(where), rate_hz
        self._closed, self._sent, self._began = threading.Event(), 0, 0.0

    def open(self) -> None:
        self._began = time.time()

    def read(self, timeout: float | None = None) -> Samples | None:
        """A quarter of a second of samples, when it has passed."""
        due = self._began + (self._sent + self._rate_hz / 4) / self._rate_hz
        wait = due - time.time()
        if self._closed.wait(max(0.0, wait if timeout is None else min(wait, timeout))) or time.time() < due:
            return None
        t = self._began + np.arange(self._sent, self._sent + int(self._rate_hz / 4)) / self._rate_hz
        self._sent += len(t)
        pulse = (np.mod(t, self._beat_s) < 1.0 / self._rate_hz).astype("f4")
        streams = {m.name: np.repeat(pulse[:, None], len(m.channels), axis=1) for m in self.modalities}
        return Samples(time=float(t[0]), rate_hz=self._rate_hz, streams=streams)

    @property
    def ended(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        self._closed.set()
