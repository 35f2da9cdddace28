"""Linux IIO: what sysfs and the buffer hold becomes samples in physical units; libiio reads the same."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.iio import IioPolling, iio_device, iio_devices
from sensors.iio_buffer import IioBuffered, Layout, ScanElement
from sensors.live import LiveSource, State
from tests.emulated_board import NAMESPACES, entered, wait_for
from tests.iio_tree import CHANNELS, GRAVITY, SCALES, record, write_device

ACCEL = ("accel_x", "accel_y", "accel_z")


def held(folder: Path) -> int:
    """Open files of this process below `folder`."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            links.append(entry.readlink())
    return sum(folder in link.parents for link in links)


def value(channel: str) -> float:
    offset = 12 if channel == "accel_x" else 0
    return (CHANNELS[channel][2] + offset) * SCALES[channel.split("_")[0]]


def test_a_device_is_found_by_name_and_says_what_it_has(tmp_path: Path) -> None:
    root, _ = write_device(tmp_path)
    assert [d.channels for d in iio_devices(root)] == [tuple(sorted(CHANNELS))]
    assert iio_device("imu6", root) == iio_device("iio:device0", root)
    assert iio_device("imu6", root).rate() == 100.0
    with pytest.raises(OSError, match=r"IIO device 'gyro' is not there; present: imu6 \(iio:device0\)"):
        iio_device("gyro", root)


def test_polling_gives_physical_units_at_its_rate(tmp_path: Path) -> None:
    root, _ = write_device(tmp_path)
    source = IioPolling("imu6", ACCEL, "hand", 100.0, root=root)
    source.open()
    began = time.time()
    pieces = [source.read(2.0) for _ in range(3)]
    source.close()
    assert source.read(1.0) is None and source.ended
    for samples in pieces:
        assert samples is not None and samples.streams["hand"].shape == (20, 3)
        assert samples.streams["hand"][7] == pytest.approx([value(c) for c in ACCEL], rel=1e-5)
    assert pieces[0] and pieces[2] and pieces[2].time - pieces[0].time == pytest.approx(0.4, abs=0.05)
    assert abs(pieces[0].time - began) < 0.5
    assert source.modalities[0].unit == "m/s2"


def test_a_polled_sensor_that_vanishes_is_an_error_of_the_system(tmp_path: Path) -> None:
    root, _ = write_device(tmp_path)
    source = IioPolling("imu6", ACCEL, "hand", 200.0, root=root)
    source.open()
    (root / "bus/iio/devices/iio:device0/in_accel_y_raw").write_text("")
    with pytest.raises(OSError, match="in_accel_y_raw holds no number"):
        source.read(1.0)
    source.close()
    source.read(0)
    with pytest.raises(OSError, match="no channel accel_q"):
        IioPolling("imu6", ("accel_q",), "hand", 10.0, root=root).open()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_a_polled_sensor_lets_go_of_its_files_whenever_it_fails_and_at_the_end(tmp_path: Path) -> None:
    root, _ = write_device(tmp_path)
    opened = 0

    def make() -> IioPolling:
        nonlocal opened
        opened += 1
        return IioPolling("imu6", ACCEL, "hand", 50.0, root=root)

    source = LiveSource([make], 25.0, retry_s=(0.01, 0.01))
    source.open()
    wait_for(lambda: source.health["hand"].state is State.OK, "the sensor")
    assert held(root) == 3
    raw = root / "bus/iio/devices/iio:device0/in_accel_y_raw"
    raw.write_text("")
    wait_for(lambda: opened >= 10, "ten more openings, each of which fails at the first value")
    raw.write_text("100")
    wait_for(lambda: source.health["hand"].state is State.OK, "the sensor to come back")
    assert held(root) == 3
    raw.unlink()  # it is among the scan elements all the same: one channel opens, the second does not
    source.close()
    assert held(root) == 0
    with pytest.raises(OSError, match="in_accel_y_raw"):
        IioPolling("imu6", ACCEL, "hand", 50.0, root=root).open()
    assert held(root) == 0


@pytest.mark.parametrize("new_form", [False, True])
def test_the_buffer_is_set_up_read_and_switched_off_again(tmp_path: Path, new_form: bool) -> None:
    root, dev = write_device(tmp_path, new_form=new_form)
    device = root / "bus/iio/devices/iio:device0"
    control = device / ("buffer0" if new_form else "buffer")
    elements = device / ("buffer0" if new_form else "scan_elements")
    writer = os.open(dev / "iio:device0", os.O_RDWR)  # a reader of a pipe needs a writer
    source = IioBuffered("imu6", {"hand": ACCEL, "turn": ("anglvel_z",)}, root=root, dev=dev, trigger="hrtimer0")
    source.open()
    assert (control / "enable").read_text().startswith("1")
    assert (device / "trigger/current_trigger").read_text().strip() == "hrtimer0"
    assert all((elements / f"in_{c}_en").read_text().startswith("1") for c in (*CHANNELS, "timestamp"))
    began = 1_700_000_000_000_000_000
    records = [record(k - 500, 100, -2048, -70000 + k, began + k * 10_000_000) for k in range(40)]
    del records[25:30]  # lost on the way
    stream = b"".join(records)
    os.write(writer, stream[:500])  # ends inside a record
    first = source.read(1.0)
    os.write(writer, stream[500:])
    rest = [source.read(1.0) for _ in range(2)]
    source.close()
    assert (control / "enable").read_text().startswith("0")
    assert source.read(1.0) is None and source.ended
    os.close(writer)
    assert first is not None and len(first) == 20 and first.time == pytest.approx(1_700_000_000.0)
    assert [len(r) for r in rest if r] == [5, 10] and rest[1] and rest[1].time == pytest.approx(1_700_000_000.3)
    hand = first.streams["hand"]
    assert hand[:, 0] == pytest.approx((np.arange(20) - 500 + 12) * GRAVITY / 1024, rel=1e-5)
    assert hand[3, 1:] == pytest.approx([100 * GRAVITY / 1024, -2048 * GRAVITY / 1024], rel=1e-5)
    assert first.streams["turn"][:, 0] == pytest.approx((np.arange(20) - 70000) * 0.001, rel=1e-5)
    assert first.rate_hz == 100.0


def test_unused_channels_are_switched_off(tmp_path: Path) -> None:
    root, dev = write_device(tmp_path)
    elements = root / "bus/iio/devices/iio:device0/scan_elements"
    (elements / "in_anglvel_z_en").write_text("1\n")
    writer = os.open(dev / "iio:device0", os.O_RDWR)
    source = IioBuffered("imu6", {"hand": ("accel_y",)}, 50.0, root=root, dev=dev)
    source.open()
    assert [(elements / f"in_{c}_en").read_text()[0] for c in CHANNELS] == ["0", "1", "0", "0"]
    assert (elements.parent / "sampling_frequency").read_text().startswith("50")
    source.close()
    source.read(0)
    os.close(writer)


def test_closing_wakes_a_read_that_waits(tmp_path: Path) -> None:
    root, dev = write_device(tmp_path)
    writer = os.open(dev / "iio:device0", os.O_RDWR)
    source = IioBuffered("imu6", {"hand": ACCEL}, root=root, dev=dev)
    source.open()
    threading.Timer(0.2, source.close).start()
    began = time.monotonic()
    assert source.read(None) is None
    assert time.monotonic() - began < 2
    os.close(writer)


def test_a_device_without_a_buffer_says_to_poll_it(tmp_path: Path) -> None:
    root, dev = write_device(tmp_path)
    shutil.rmtree(root / "bus/iio/devices/iio:device0/scan_elements")
    with pytest.raises(OSError, match="has no buffer; poll it instead"):
        IioBuffered("imu6", {"hand": ACCEL}, root=root, dev=dev).open()


@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from([8, 16, 32, 64]),
    st.data(),
)
def test_any_type_in_the_kernels_notation_decodes_to_the_number_that_was_packed(
    big: bool, signed: bool, storage: int, data: st.DataObject
) -> None:
    bits = data.draw(st.integers(2, storage))
    shift = data.draw(st.integers(0, storage - bits))
    top = 62 if storage == 64 and not signed else bits
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << min(bits, top)) - 1)
    numbers = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=5))
    text = f"{'be' if big else 'le'}:{'s' if signed else 'u'}{bits}/{storage}>>{shift}"
    element = ScanElement.parse("accel_x", 0, text)
    noise = (1 << shift) - 1  # bits below the value are not ours
    packed = b"".join(
        (((n & ((1 << bits) - 1)) << shift) | noise).to_bytes(storage // 8, "big" if big else "little") for n in numbers
    )
    assert Layout.of([element]).decode(packed)["accel_x"].tolist() == numbers


def test_a_record_is_ordered_by_index_and_every_element_aligned_to_its_size() -> None:
    elements = [
        ScanElement.parse("timestamp", 9, "le:s64/64>>0"),
        ScanElement.parse("a", 2, "le:u8/8>>0"),
        ScanElement.parse("b", 4, "be:s16/16>>0"),
        ScanElement.parse("q", 6, "le:s16/16X4>>0"),
    ]
    layout = Layout.of(elements)
    assert [e.channel for e in layout.elements] == ["a", "b", "q", "timestamp"]
    assert (layout.offsets, layout.size) == ((0, 2, 8, 16), 24)
    assert layout.decode(bytes(48))["q"].shape == (2, 4)
    with pytest.raises(ValueError, match=re.escape("type 'le:s12' is not [be|le]:[s|u]bits/storage[Xrepeat]>>shift")):
        ScanElement.parse("a", 0, "le:s12")


@pytest.mark.skipif(shutil.which("iio_info") is None, reason="libiio's iio_info is not installed (libiio-utils)")
def test_libiio_reads_the_same_channels_types_and_values(tmp_path: Path) -> None:
    root, _ = write_device(tmp_path)
    if not NAMESPACES:
        pytest.skip("mount namespaces exist on Linux only")
    with entered(tmp_path, root) as namespace:
        done = subprocess.run(
            [*namespace.prefix, "iio_info", "-u", "local:"], capture_output=True, text=True, check=True
        )
    device = iio_device("imu6", root)
    for channel in device.channels:
        section = re.search(rf"\n\t\t\t{channel}:(.*\n(?:\t\t\t\t.*\n|\t\t\t\d.*\n)*)", done.stdout)
        assert section, done.stdout
        index, kind, raw = CHANNELS[channel]
        assert f"input, index: {index}, format: {kind}" in section[1]
        said = {name: float(text) for name, text in re.findall(r"attr +\d+: (\w+) .*?value: (\S+)", section[1])}
        assert said["raw"] == raw and said.get("offset", 0.0) == device.number(channel, "offset", 0.0)
        assert said["scale"] == pytest.approx(device.number(channel, "scale", 1.0))
