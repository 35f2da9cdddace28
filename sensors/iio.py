"""Linux IIO sensors: what a device offers, polled through sysfs. Values are (raw + offset) * scale: m/s2, rad/s, ...

The kernel's contract is Documentation/ABI/testing/sysfs-bus-iio. Buffered reading is in sensors.iio_buffer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.recording import Modality
from sensors.stream import Samples

SYS = Path("/sys")
DEV = Path("/dev")
_UNITS = {"accel": "m/s2", "anglvel": "rad/s", "magn": "Gauss", "temp": "milli C", "pressure": "kPa", "voltage": "mV"}


@dataclass(frozen=True)
class IioDevice:
    """A device below /sys/bus/iio/devices. `channels` as in in_<channel>_raw: accel_x, anglvel_z, ..."""

    path: Path
    name: str
    channels: tuple[str, ...]

    @property
    def node(self) -> str:
        """Name of its character device."""
        return self.path.name

    def number(self, channel: str, attribute: str, default: float) -> float:
        """An attribute of a channel, or what all channels of its kind share: in_accel_x_scale, then in_accel_scale."""
        kind = channel.split("_")[0]
        for name in dict.fromkeys((channel, kind, kind.rstrip("0123456789"))):
            file = self.path / f"in_{name}_{attribute}"
            if file.exists():
                return float(file.read_text())
        return default

    def rate(self) -> float:
        """Samples per second as the device is set, 0 where it does not say."""
        kinds = dict.fromkeys(channel.split("_")[0] for channel in self.channels)
        for name in ("sampling_frequency", *(f"in_{kind}_sampling_frequency" for kind in kinds)):
            file = self.path / name
            if file.exists():
                return float(file.read_text())
        return 0.0

    def modality(self, name: str, channels: Sequence[str], rate_hz: float) -> Modality:
        """These channels as a modality. OSError if the device lacks one."""
        missing = [channel for channel in channels if channel not in self.channels]
        if missing or not channels:
            raise OSError(f"IIO device {self.name}: no channel {', '.join(missing)}; it has {', '.join(self.channels)}")
        kind = channels[0].split("_")[0].rstrip("0123456789")
        return Modality(name, tuple(channels), _UNITS.get(kind, kind), rate_hz)


def iio_devices(root: Path = SYS) -> list[IioDevice]:
    """All IIO devices below `root`, triggers left out."""
    found = []
    for path in sorted((root / "bus/iio/devices").glob("iio:device*")):
        name = (path / "name").read_text().strip() if (path / "name").exists() else path.name
        polled = {file.name[3:-4] for file in path.glob("in_*_raw")}
        scanned = {
            file.name[3:-3] for folder in ("scan_elements", "buffer0") for file in (path / folder).glob("in_*_en")
        }
        channels = sorted((polled | scanned) - {"timestamp"})
        if channels:
            found.append(IioDevice(path, name, tuple(channels)))
    return found


def iio_device(name: str, root: Path = SYS) -> IioDevice:
    """The device of this name, label or node (iio:device0). OSError, naming those that are there, if there is none."""
    devices = iio_devices(root)
    for device in devices:
        label = device.path / "label"
        if name in (device.name, device.node) or (label.exists() and name == label.read_text().strip()):
            return device
    known = ", ".join(f"{d.name} ({d.node})" for d in devices) or "none"
    raise OSError(f"IIO device {name!r} is not there; present: {known}")


class IioPolling:
    """Reads channels of one device through sysfs, `rate_hz` times a second: a system call a value, for slow sensors.

    device, channels    as in IioDevice; modality  the name the model gives them
    piece_s             seconds of samples in a piece
    """

    def __init__(
        self,
        device: str,
        channels: Sequence[str],
        modality: str,
        rate_hz: float,
        *,
        root: Path = SYS,
        piece_s: float = 0.2,
    ) -> None:
        self._device, self._channels, self._root = device, tuple(channels), root
        self.modalities: tuple[Modality, ...] = (Modality(modality, self._channels, "", rate_hz),)
        self._name, self._rate = modality, rate_hz
        self._piece = max(1, round(piece_s * rate_hz))
        self._files: list[int] = []
        self._offset = self._scale = np.zeros(0)
        self._due = 0.0
        self._values: list[list[float]] = []
        self._first = 0.0
        self._closed = threading.Event()
        self._using = threading.Lock()  # a file is not closed while it is read: its number could be another's by then

    def open(self) -> None:
        """Find the device. OSError if it, a channel or the right to read it is missing."""
        device = iio_device(self._device, self._root)
        self.modalities = (device.modality(self._name, self._channels, self._rate),)
        self._offset = np.array([device.number(c, "offset", 0.0) for c in self._channels])
        self._scale = np.array([device.number(c, "scale", 1.0) for c in self._channels])
        with self._using:
            self._let_go()
            try:
                for channel in self._channels:
                    self._files.append(os.open(device.path / f"in_{channel}_raw", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                self._let_go()
                raise
        self._due, self._values = time.monotonic(), []

    def read(self, timeout: float | None = None) -> Samples | None:
        """Wait for the rest of a piece. OSError if the device is gone."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._using:
            while not self._closed.is_set():
                now = time.monotonic()
                if now >= self._due:
                    if now - self._due > 1.0 and self._values:
                        self._due = now
                        return self._take()  # we were held up: what comes next is not consecutive
                    self._sample()
                    self._due = max(self._due + 1 / self._rate, now - 1.0)
                    if len(self._values) == self._piece:
                        return self._take()
                elif end is not None and now >= end:
                    return None
                else:
                    self._closed.wait(min(self._due, end or self._due) - now)
        return None

    @property
    def ended(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Stop, and let go of the files; waits for a read that is at a value."""
        self._closed.set()
        with self._using:
            self._let_go()

    def _sample(self) -> None:
        if not self._values:
            self._first = time.time()
        raw = []
        for file, channel in zip(self._files, self._channels, strict=True):
            try:
                raw.append(float(os.pread(file, 64, 0)))
            except ValueError:
                raise OSError(f"IIO device {self._device}: in_{channel}_raw holds no number") from None
        self._values.append(raw)

    def _take(self) -> Samples:
        raw, self._values = np.array(self._values), []
        values = ((raw + self._offset) * self._scale).astype(np.float32)  # (n, channels)
        return Samples(self._first, self._rate, {self._name: values})

    def _let_go(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []
