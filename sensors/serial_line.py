"""Sensors that write lines of numbers to a serial port: microcontrollers, USB receivers, GPS-like gadgets.

A line holds numbers divided by commas, semicolons, tabs or spaces; `columns` says which belong to which modality. Needs
pyserial (extra: serial).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sensors.pace import Pace
from sensors.recording import Modality
from sensors.stream import Samples

if TYPE_CHECKING:
    from serial import Serial

_DIVIDER = re.compile(r"[,;\t ]+")
_WAIT = 0.2  # seconds a read waits at a time: how late a timeout or an end is noticed
_LONGEST = 4096  # bytes without a line's end: this is not the format we read


class SerialSource:
    """One serial port as a source.

    columns     modality -> positions of its channels in a line, from 0; channel names are c0, c1, ...
    rate_hz     lines per second; their times are those of arrival, smoothed
    clock       position of a column with the sender's seconds, from which gaps are recognised exactly; None: no clock
    `refused` counts lines that could not be read.
    """

    def __init__(
        self,
        port: str,
        columns: Mapping[str, Sequence[int]],
        rate_hz: float,
        *,
        baud: int = 115200,
        clock: int | None = None,
        piece_s: float = 0.2,
    ) -> None:
        self.refused = 0
        self.modalities = tuple(Modality(m, tuple(f"c{k}" for k in c), "", rate_hz) for m, c in columns.items())
        self._port, self._baud, self._rate = port, baud, rate_hz
        self._columns = {m: list(c) for m, c in columns.items()}
        self._needed = 1 + max([k for c in columns.values() for k in c] + ([] if clock is None else [clock]))
        self._clock, self._piece = clock, max(1, round(piece_s * rate_hz))
        self._serial: Serial | None = None
        self._rest = b""
        self._rows: list[list[float]] = []
        self._pace = Pace(rate_hz)
        self._to_epoch: float | None = None
        self._ended = False

    def open(self) -> None:
        """Open the port. OSError with the port's name if that fails or pyserial is missing."""
        try:
            import serial
        except ImportError:
            raise OSError("serial sensors need pyserial; run: pip install 'relief-edge[serial]'") from None
        try:
            self._serial = serial.Serial(self._port, self._baud, timeout=_WAIT, exclusive=True)
        except serial.SerialException as error:
            raise OSError(f"serial port {self._port}: {error}") from None

    def read(self, timeout: float | None = None) -> Samples | None:
        """The next piece. OSError if the port is gone or what comes are no lines."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._ended:
            taken = self._take()
            if taken is not None:
                return taken
            if end is not None and time.monotonic() >= end:
                return None
            self._receive()
        if self._serial is not None:
            self._serial.close()
        return None

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        self._ended = True
        if self._serial is not None:
            self._serial.cancel_read()

    def _receive(self) -> None:
        port = self._serial
        if port is None:
            raise OSError(f"serial port {self._port} is not open")
        try:
            fresh = port.read(1)
            fresh += port.read(port.in_waiting)
        except (OSError, TypeError) as error:  # pyserial: TypeError where the port is closed while it reads
            if self._ended:
                return
            raise OSError(f"serial port {self._port}: {error}") from None
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        if len(self._rest) > _LONGEST:
            self._rest = b""
            raise OSError(
                f"serial port {self._port}: {_LONGEST} bytes without a line's end; is {self._baud} baud right?"
            )
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        fields = _DIVIDER.split(line.decode("ascii", "replace").strip())
        try:
            row = [float(value) for value in fields]
        except ValueError:
            self.refused += fields != [""]
            return
        if len(row) < self._needed:
            self.refused += 1
            return
        self._rows.append(row)

    def _take(self) -> Samples | None:
        """A piece once enough lines are here, cut where the sender's clock shows that some were lost."""
        if len(self._rows) < self._piece:
            return None
        rows = self._rows
        count = len(rows)
        if self._clock is not None:
            steps = np.diff([row[self._clock] for row in rows])
            broken = np.flatnonzero((steps > 1.5 / self._rate) | (steps <= 0))
            count = int(broken[0]) + 1 if len(broken) else count
        taken, self._rows = np.array([row[: self._needed] for row in rows[:count]]), rows[count:]
        streams = {m: taken[:, columns].astype(np.float32) for m, columns in self._columns.items()}
        return Samples(self._stamp(taken), self._rate, streams)

    def _stamp(self, rows: np.ndarray) -> float:
        now = time.time()
        if self._clock is None:
            return self._pace.stamp(len(rows), now - len(self._rows) / self._rate)
        first, last = float(rows[0, self._clock]), float(rows[-1, self._clock])
        if self._to_epoch is None or not -0.25 < now - last - self._to_epoch < 2.0:
            self._to_epoch = now - last  # the sender started anew, or its clock drifted away
        return first + self._to_epoch
