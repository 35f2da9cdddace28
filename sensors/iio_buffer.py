"""Linux IIO sensors through their buffer: records from /dev/iio:deviceN, laid out as the scan elements say."""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sensors.iio import DEV, SYS, IioDevice, iio_device
from sensors.pace import Pace
from sensors.recording import Floats, Modality
from sensors.stream import Samples

_TYPE = re.compile(r"(be|le):([su])(\d+)/(\d+)(?:X(\d+))?>>(\d+)\s*\Z")
_BREAK = 1.5  # periods between two timestamps beyond which samples were lost
TIMESTAMP = "timestamp"


@dataclass(frozen=True)
class ScanElement:
    """One channel's place in a record, from its `_index` and `_type` (such as le:s12/16>>4)."""

    channel: str
    index: int
    big_endian: bool
    signed: bool
    bits: int
    storage: int
    repeat: int
    shift: int

    @property
    def bytes(self) -> int:
        return self.storage // 8 * self.repeat

    @classmethod
    def parse(cls, channel: str, index: int, text: str) -> ScanElement:
        """ValueError for a type that is not in the kernel's notation."""
        found = _TYPE.match(text.strip())
        if not found or int(found[4]) not in (8, 16, 32, 64):
            raise ValueError(
                f"IIO channel {channel}: type {text.strip()!r} is not [be|le]:[s|u]bits/storage[Xrepeat]>>shift"
            )
        repeat = int(found[5] or 1)
        return cls(
            channel, index, found[1] == "be", found[2] == "s", int(found[3]), int(found[4]), repeat, int(found[6])
        )

    def decode(self, column: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """(n, bytes) of records -> (n,) integers, or (n, repeat) where a channel holds several."""
        order = ">" if self.big_endian else "<"
        wide = np.ascontiguousarray(column).view(f"{order}u{self.storage // 8}").astype(np.uint64)
        wide = wide >> np.uint64(self.shift)
        if self.bits < 64:
            wide &= np.uint64((1 << self.bits) - 1)
            values = wide.astype(np.int64)
            if self.signed:
                values -= (values >> (self.bits - 1) & 1) << self.bits
        else:
            values = wide.astype(np.int64)
        decoded: npt.NDArray[np.int64] = values[:, 0] if self.repeat == 1 else values
        return decoded


@dataclass(frozen=True)
class Layout:
    """Where the enabled elements lie in a record: by index, each aligned to its size, the record to the largest."""

    elements: tuple[ScanElement, ...]
    offsets: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, elements: Sequence[ScanElement]) -> Layout:
        ordered = tuple(sorted(elements, key=lambda e: e.index))
        offsets, at = [], 0
        for element in ordered:
            at = -(-at // element.bytes) * element.bytes
            offsets.append(at)
            at += element.bytes
        largest = max((e.bytes for e in ordered), default=1)
        return cls(ordered, tuple(offsets), -(-at // largest) * largest)

    def decode(self, records: bytes) -> dict[str, npt.NDArray[np.int64]]:
        """Channel -> (n,) raw values of whole records."""
        table = np.frombuffer(records, np.uint8).reshape(-1, self.size)
        return {
            e.channel: e.decode(table[:, offset : offset + e.bytes])
            for e, offset in zip(self.elements, self.offsets, strict=True)
        }


class IioBuffered:
    """A device's buffer as a source: enabled at `open`, disabled at `close`.

    modalities   name -> channels, all of the same device and so of one clock
    rate_hz      asked of the device where it can be set; 0: as it is set
    trigger      name of the trigger to use, for devices that need one
    """

    def __init__(
        self,
        device: str,
        modalities: Mapping[str, Sequence[str]],
        rate_hz: float = 0.0,
        *,
        trigger: str = "",
        root: Path = SYS,
        dev: Path = DEV,
        piece_s: float = 0.2,
    ) -> None:
        self._name, self._wanted, self._rate = device, {m: tuple(c) for m, c in modalities.items()}, rate_hz
        self._trigger, self._root, self._dev, self._piece_s = trigger, root, dev, piece_s
        self.modalities = tuple(Modality(m, c, "", rate_hz) for m, c in self._wanted.items())
        self._device: IioDevice | None = None
        self._node = -1
        self._rest = b""
        self._ready: deque[Samples] = deque()
        self._to_epoch = 0.0
        self._wake_read, self._wake_write = os.pipe()
        self._closed = False
        self._using = threading.Lock()  # the node is not closed while it is read

    def open(self) -> None:
        """Set the device up and start its buffer. OSError saying which file refused, or what is missing."""
        with self._using:
            self._stop()
        self._device = device = iio_device(self._name, self._root)
        elements, control = device.path / "scan_elements", device.path / "buffer"
        if (device.path / "buffer0").is_dir():
            elements = control = device.path / "buffer0"  # kernel 5.11 and newer
        elif not elements.is_dir():
            raise OSError(f"IIO device {device.name} has no buffer; poll it instead")
        channels = [c for own in self._wanted.values() for c in own]
        _write(control / "enable", "0")
        self._set_rate(device)
        self.modalities = tuple(device.modality(m, c, self._rate) for m, c in self._wanted.items())
        self._layout = Layout.of(self._enable(elements, channels))
        self._scale = {c: (device.number(c, "offset", 0.0), device.number(c, "scale", 1.0)) for c in channels}
        self._pace, self._last = Pace(self._rate), 0.0
        if self._trigger:
            _write(device.path / "trigger/current_trigger", self._trigger)
        piece = max(1, round(self._piece_s * self._rate))
        _write(control / "length", str(max(64, 8 * piece)))
        if (control / "watermark").exists():
            _write(control / "watermark", str(piece))
        self._to_epoch = self._clock_offset(device)
        self._control = control
        _write(control / "enable", "1")
        self._node = os.open(self._dev / device.node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""

    def read(self, timeout: float | None = None) -> Samples | None:
        """The next run of consecutive samples. OSError if the device is gone."""
        if self._ready:
            return self._ready.popleft()
        with self._using:
            if self._closed:
                return None
            poller = select.poll()
            poller.register(self._node, select.POLLIN)
            poller.register(self._wake_read, select.POLLIN)
            events = dict(poller.poll(None if timeout is None else timeout * 1000))
            if self._closed:
                return None
            if self._node in events:
                self._receive()
        return self._ready.popleft() if self._ready else None

    @property
    def ended(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Switch the buffer off and let go of the device."""
        if not self._closed:
            self._closed = True
            os.write(self._wake_write, b"x")
        with self._using:
            self._stop()

    def __del__(self) -> None:
        self._stop()
        for end in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(end)

    # -- setting up ------------------------------------------------------------------------------

    def _set_rate(self, device: IioDevice) -> None:
        settable = device.path / "sampling_frequency"
        if self._rate and settable.exists():
            _write(settable, f"{self._rate:g}")
        self._rate = device.rate() or self._rate
        if not self._rate:
            raise OSError(f"IIO device {device.name} does not say its sampling frequency; set rate_hz")

    def _enable(self, folder: Path, channels: Sequence[str]) -> list[ScanElement]:
        """Switch on exactly these channels, and the timestamp where there is one."""
        chosen = []
        for switch in sorted(folder.glob("in_*_en")):
            channel = switch.name[3:-3]
            wanted = channel in channels or channel == TIMESTAMP
            _write(switch, "1" if wanted else "0")
            if wanted:
                index = int((folder / f"in_{channel}_index").read_text())
                chosen.append(ScanElement.parse(channel, index, (folder / f"in_{channel}_type").read_text()))
        missing = set(channels) - {e.channel for e in chosen}
        if missing:
            raise OSError(f"IIO device {self._name}: {', '.join(sorted(missing))} cannot be buffered")
        return chosen

    def _clock_offset(self, device: IioDevice) -> float:
        """Seconds to add to the device's timestamps to get seconds since the epoch."""
        file = device.path / "current_timestamp_clock"
        clock = file.read_text().strip() if file.exists() else "realtime"
        known = {"monotonic": "CLOCK_MONOTONIC", "monotonic_raw": "CLOCK_MONOTONIC_RAW", "boottime": "CLOCK_BOOTTIME"}
        if clock in known:
            return time.time() - time.clock_gettime(getattr(time, known[clock]))
        return 0.0

    def _stop(self) -> None:
        if self._node >= 0:
            os.close(self._node)
            self._node = -1
            with contextlib.suppress(OSError):
                _write(self._control / "enable", "0")

    # -- records ---------------------------------------------------------------------------------

    def _receive(self) -> None:
        fresh = b""
        with contextlib.suppress(BlockingIOError):
            fresh = os.read(self._node, 1 << 16)
            if not fresh:
                raise OSError(f"IIO device {self._name}: its buffer ended")
        whole = self._rest + fresh
        until = len(whole) - len(whole) % self._layout.size
        self._rest = whole[until:]
        if until:
            self._ready.extend(self._pieces(self._layout.decode(whole[:until]), time.time()))

    def _pieces(self, raw: dict[str, npt.NDArray[np.int64]], arrival: float) -> list[Samples]:
        values: dict[str, Floats] = {}
        for modality, channels in self._wanted.items():
            columns = [(raw[c] + self._scale[c][0]) * self._scale[c][1] for c in channels]
            values[modality] = np.stack(columns, axis=1).astype(np.float32)  # (n, channels)
        count = len(next(iter(values.values())))
        if TIMESTAMP not in raw:
            return [Samples(self._pace.stamp(count, arrival), self._rate, values)]
        times = raw[TIMESTAMP] / 1e9 + self._to_epoch
        borders = [0, *(np.flatnonzero(np.diff(times) > _BREAK / self._rate) + 1), count]
        return [
            Samples(float(times[begin]), self._rate, {m: v[begin:end] for m, v in values.items()})
            for begin, end in pairwise(borders)
        ]


def _write(file: Path, text: str) -> None:
    """OSError with the file's name; a missing file is one too."""
    with file.open("r+") as out:
        out.write(text)
