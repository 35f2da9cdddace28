"""An IIO device as the kernel shows it under /sys and /dev, in a folder; its buffer is a named pipe."""

from __future__ import annotations

import os
import struct
from pathlib import Path

GRAVITY = 9.80665
# channel -> (index, type, raw value): an accelerometer of 12 bits in 16, left-aligned, and a wide big-endian turn rate.
CHANNELS = {
    "accel_x": (1, "le:s12/16>>4", -512),
    "accel_y": (2, "le:s12/16>>4", 100),
    "accel_z": (3, "le:s12/16>>4", 2047),
    "anglvel_z": (5, "be:s24/32>>8", -70000),
}
SCALES = {"accel": GRAVITY / 1024, "anglvel": 0.001}
TIMESTAMP = (7, "le:s64/64>>0")


def write_device(folder: Path, *, new_form: bool = False, name: str = "imu6") -> tuple[Path, Path]:
    """The device below `folder`/sys and its node below `folder`/dev; the two roots are returned."""
    root, dev = folder / "sys", folder / "dev"
    device = root / "bus/iio/devices/iio:device0"
    elements = device / ("buffer0" if new_form else "scan_elements")
    control = elements if new_form else device / "buffer"
    for needed in (elements, control, device / "trigger", dev):
        needed.mkdir(parents=True, exist_ok=True)
    (device / "name").write_text(f"{name}\n")
    (device / "sampling_frequency").write_text("100\n")
    (device / "current_timestamp_clock").write_text("realtime\n")
    (device / "trigger/current_trigger").write_text("\n")
    for kind, scale in SCALES.items():
        (device / f"in_{kind}_scale").write_text(f"{scale:.9f}\n")
    (device / "in_accel_x_offset").write_text("12\n")
    for channel, (index, kind, raw) in CHANNELS.items():
        (device / f"in_{channel}_raw").write_text(f"{raw}\n")
        _element(elements, channel, index, kind)
    _element(elements, "timestamp", *TIMESTAMP)
    for control_file, value in {"enable": "0", "length": "2", "watermark": "1"}.items():
        (control / control_file).write_text(f"{value}\n")
    os.mkfifo(dev / "iio:device0")
    return root, dev


def _element(folder: Path, channel: str, index: int, kind: str) -> None:
    (folder / f"in_{channel}_en").write_text("0\n")
    (folder / f"in_{channel}_index").write_text(f"{index}\n")
    (folder / f"in_{channel}_type").write_text(f"{kind}\n")


def record(x: int, y: int, z: int, turn: int, nanoseconds: int) -> bytes:
    """A record with all channels on: three 16-bit values, 2 bytes of padding, 32 bits, padding, the timestamp."""
    accel = struct.pack("<3H", *((value << 4) & 0xFFFF for value in (x, y, z)))
    return (
        accel + b"\xaa\xaa" + struct.pack(">I", (turn << 8) & 0xFFFFFFFF) + b"\xbb" * 4 + struct.pack("<q", nanoseconds)
    )
