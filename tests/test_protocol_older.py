"""A real broker that speaks MQTT 3.1.1 only (nats-server 2.9): the same protocol, with what is missing said."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.config import BrokerConfig
from protocol.mqtt import OLDER, MqttTransport
from protocol.transport import Received, Will
from tests.parties import Party, eventually
from tests.raw_client import free_port


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a nats-server: the system's, or Debian's package unpacked for this run."""
    folder = tmp_path_factory.mktemp("nats")
    program = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin") or _fetched(folder)
    port = free_port()
    (folder / "nats.conf").write_text(
        f'server_name: one\nhost: "127.0.0.1"\nport: {free_port()}\n'
        f'jetstream {{ store_dir: "{folder}/store" }}\nmqtt {{ host: "127.0.0.1", port: {port} }}\n'
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", folder / "nats.conf"], stdout=log, stderr=log)
    try:
        assert eventually(lambda: _accepts(port)), (folder / "log").read_text()
        time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _fetched(folder: Path) -> str:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("no nats-server here, and no apt to fetch one with")
    command = ["apt-get", "download", "nats-server"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    packages = list(folder.glob("*.deb"))
    if done.returncode or not packages:
        pytest.skip("no nats-server here, and none could be fetched")
    subprocess.run(["dpkg", "-x", packages[0], folder / "root"], check=True)
    return str(folder / "root" / "usr" / "sbin" / "nats-server")


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_the_protocol_runs_over_a_broker_of_3_1_1(nats: int, caplog: pytest.LogCaptureFixture) -> None:
    config = BrokerConfig(port=nats, reconnect_min=0.05)
    control, device = Party(MqttTransport(config, "control")), None
    try:
        control.transport.subscribe("relief/v1/f/device/+/status")
        control.transport.publish("relief/v1/f/coordinator/state", b"epoch 3", retain=True)
        control.transport.publish("relief/v1/f/block/acc/0", bytes(114_000), retain=True)
        will = Will("relief/v1/f/device/d1/status", b"dead", delay=5)
        device = Party(MqttTransport(config, "d1"), will)
        device.transport.subscribe("relief/v1/f/coordinator/state", "relief/v1/f/block/acc/+")
        first = {event.topic.split("/")[3]: event for event in (device.next(Received), device.next(Received))}
        assert first["coordinator"].payload == b"epoch 3"
        assert first["coordinator"].retained
        assert len(first["block"].payload) == 114_000
        device.transport.publish("relief/v1/f/device/d1/status", b"born", retain=True)
        assert control.next(Received).payload == b"born"
        device.transport.close(clean=False)
        assert control.next(Received).payload == b"dead"
        assert f"broker 127.0.0.1:{nats} {OLDER}" in [record.getMessage() for record in caplog.records]
    finally:
        control.transport.close()
        if device is not None:
            device.transport.close()
