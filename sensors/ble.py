"""Heart rate over Bluetooth Low Energy: service 180D, characteristic 2A37. Needs bleak (extra: ble)."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from typing import Any

import numpy as np

from protocol.waiting import take
from sensors.recording import Modality
from sensors.stream import Samples

MEASUREMENT = "00002a37-0000-1000-8000-00805f9b34fb"
SERVICE = "0000180d-0000-1000-8000-00805f9b34fb"
RATE_HZ = 1.0  # straps notify about once a second


def heart_rate(data: bytes | bytearray) -> float | None:
    """Beats per minute of a Heart Rate Measurement; None while the strap has no contact with the skin.

    Flags: bit 0 the value is 16 bits wide, bit 2 contact is detected where bit 1 says that it can be. ValueError for
    bytes that are no measurement.
    """
    wide = bool(data) and data[0] & 1
    if len(data) < (3 if wide else 2):
        raise ValueError(f"heart rate: {len(data)} bytes are too few for a measurement")
    if data[0] & 0b110 == 0b010:
        return None
    return float(int.from_bytes(data[1:3], "little") if wide else data[1])


class HeartRateSource:
    """One strap by its Bluetooth address or name; `refused` counts notifications that could not be read.

    patience   seconds to look for the strap and to connect
    """

    def __init__(self, strap: str, modality: str = "heart", *, patience: float = 20.0) -> None:
        self.refused = 0
        self.modalities: tuple[Modality, ...] = (Modality(modality, ("bpm",), "1/min", RATE_HZ),)
        self._strap, self._name, self._patience = strap, modality, patience
        self._events: queue.SimpleQueue[Samples | Exception | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._ended = False

    def open(self) -> None:
        """Connect and ask for notifications. OSError if Bluetooth, the strap or bleak is missing."""
        ready: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="heart rate", daemon=True)
        self._thread.start()
        failed = ready.get()
        if failed is not None:
            self._thread.join()
            raise OSError(f"heart rate strap {self._strap}: {failed}") from failed

    def read(self, timeout: float | None = None) -> Samples | None:
        """The next measurement. OSError if the connection is lost."""
        if self._ended:
            return None
        with contextlib.suppress(queue.Empty):
            event = take(self._events, timeout)
            if isinstance(event, Exception):
                raise OSError(f"heart rate strap {self._strap}: {event}") from event
            return event
        return None

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        self._ended = True
        self._events.put(None)
        loop, over = self._loop, self._over
        if loop is not None and over is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(over.set)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def _run(self, ready: queue.SimpleQueue[Exception | None]) -> None:
        told = False

        def connected() -> None:
            nonlocal told
            told = True
            ready.put(None)

        try:
            asyncio.run(self._listen(connected))
        except (
            Exception
        ) as error:  # bleak lets through errors of D-Bus, the kernel and its own; each ends the connection
            (self._events if told else ready).put(error)

    async def _listen(self, connected: Any) -> None:
        try:
            from bleak import BleakClient, BleakScanner
        except ImportError:
            raise OSError("needs bleak; run: pip install 'relief-edge[ble]'") from None
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        device = await BleakScanner.find_device_by_filter(
            lambda found, _: self._strap in (found.address, found.name), timeout=self._patience
        )
        if device is None:
            raise OSError(f"not seen within {self._patience:g} s; is it worn and not connected elsewhere?")
        lost = asyncio.Event()
        async with BleakClient(device, lambda _: lost.set(), timeout=self._patience) as client:
            await client.start_notify(MEASUREMENT, self._notified)
            connected()
            waits = [asyncio.ensure_future(event.wait()) for event in (lost, self._over)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if not self._over.is_set():
            raise OSError("connection lost")

    def _notified(self, _: Any, data: bytearray) -> None:
        try:
            beats = heart_rate(data)
        except ValueError:
            self.refused += 1
            return
        if beats is not None:
            self._events.put(Samples(time.time(), RATE_HZ, {self._name: np.array([[beats]], np.float32)}))
