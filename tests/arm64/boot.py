"""A root booted as a whole machine: Debian's kernel and systemd under qemu-system-aarch64."""

from __future__ import annotations

import queue
import shutil
import subprocess
import time
from pathlib import Path

from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.messages import Status, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received
from protocol.waiting import take

GATEWAY = "10.0.2.2"  # where qemu's own network shows the host
PATIENCE = 900.0  # seconds until the birth; everything is translated instruction by instruction
NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=yes\n"


def birth(root: Path, folder: Path, broker: Broker, fleet: str, device: str) -> str:
    """Boot `root` and wait for the birth of `device` at `broker`; one line on what was seen. AssertionError."""
    if shutil.which("qemu-system-aarch64") is None:
        raise AssertionError("qemu-system-aarch64 is not installed")
    (root / "etc/systemd/network/eth.network").write_text(NETWORK)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    kernel, initrd = (next((root / "boot").glob(f"{name}-*-arm64")) for name in ("vmlinuz", "initrd.img"))
    image = folder / "disk.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(image), "3G"], check=True)
    console = folder / "console.log"
    topic = Topics(fleet).device(device, "status")
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    transport = MqttTransport(BrokerConfig(port=broker.port), "operator-boot-check")
    transport.open(inbox.put)
    began = time.monotonic()
    machine = subprocess.Popen(
        ["nice", "-n", "10", "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "1024",
         "-nographic", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd),
         "-append", "root=/dev/vda rw console=ttyAMA0 systemd.journald.forward_to_console=1",
         "-drive", f"file={image},format=raw,if=virtio", "-nic", "user,model=virtio-net-pci,ipv6=off"],
        stdin=subprocess.DEVNULL, stdout=console.open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        status = _wait(transport, inbox, topic, machine, began)
    finally:
        machine.terminate()
        machine.wait()
        transport.close()
        image.unlink()
    if status is None:
        raise AssertionError(
            f"no birth after {time.monotonic() - began:.0f} s:\n{console.read_text(errors='replace')[-1500:]}"
        )
    seconds = time.monotonic() - began
    return f"born {seconds:.0f} s after power-on: runtime {status.runtime}, {', '.join(status.modalities)}"


def _wait(
    transport: MqttTransport,
    inbox: queue.SimpleQueue[Event],
    topic: str,
    machine: subprocess.Popen[bytes],
    began: float,
) -> Status | None:
    while time.monotonic() - began < PATIENCE and machine.poll() is None:
        try:
            event = take(inbox, 1.0)
        except queue.Empty:
            continue
        if isinstance(event, Connected):
            transport.subscribe(topic)
        elif isinstance(event, Received) and event.payload:
            status = decode(Status, event.payload)
            if status.online:
                return status
    return None
