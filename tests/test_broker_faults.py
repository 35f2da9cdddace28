"""Load and faults at a real Mosquitto: crashes, slow links, full disks, storms, and devices that stay away."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from broker_config.directory import Directory
from broker_config.launcher import Broker
from coordinator.publisher import Publisher
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies import Settings, strategy
from models.spec import InputSpec, ModelSpec
from protocol.chunks import Reassembly, chunk_size, split
from protocol.config import BrokerConfig
from protocol.errors import TooLarge
from protocol.messages import Chunk, CoordinatorState, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Lost, Received, Will
from tests.parties import Party, eventually
from tests.raw_client import RawClient, free_port
from tests.slow_link import SlowLink
from tools.broker import app, secure

WARD = Topics("ward")


@pytest.fixture
def opened(broker: Broker) -> Iterator[list[MqttTransport]]:
    transports: list[MqttTransport] = []
    yield transports
    for transport in transports:
        transport.close(clean=False)


def _party(opened: list[MqttTransport], port: int, name: str, will: Will | None = None, **more: float) -> Party:
    config = BrokerConfig.model_validate({"port": port, "reconnect_min": 0.02, "reconnect_max": 0.2, **more})
    opened.append(MqttTransport(config, name))
    return Party(opened[-1], will)


# -- crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistence", [False, True])
def test_after_kill_9_of_the_broker_retained_state_is_back_within_one_reconnect(
    opened: list[MqttTransport], persistence: bool
) -> None:
    with Broker(persistence=persistence) as broker:
        control, bulk = (_party(opened, broker.port, f"coordinator-{name}") for name in ("control", "bulk"))
        publisher = Publisher(WARD, control.transport, bulk.transport)
        publisher.state(CoordinatorState(online=True, boot="b1", epoch=3))
        vector = np.random.default_rng(0).normal(size=100_000).astype("f4")
        publisher.block("acc", 7, 3, vector, None)
        broker.kill()
        for party in (control, bulk):
            party.until(Lost)
        broker.restart()
        for party in (control, bulk):
            party.until(Connected)
        began = time.monotonic()
        publisher.again_control()
        publisher.again_bulk()
        device = _party(opened, broker.port, "d1")
        device.transport.subscribe(WARD.coordinator("state"), WARD.chunk("acc", "+"))
        seen, reassembly = {}, Reassembly()
        while len(seen) < 2:
            event = device.until(Received)
            if event.topic == WARD.coordinator("state"):
                seen["state"] = decode(CoordinatorState, event.payload).boot.encode()
            elif not event.topic.endswith("manifest") and (whole := reassembly.add(decode(Chunk, event.payload))):
                seen["acc"] = whole
        assert seen == {"state": b"b1", "acc": vector.tobytes()}
        print(f"after kill -9, persistence {persistence}: state and blocks in {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 2


def test_a_full_disk_stops_neither_the_broker_nor_its_messages(opened: list[MqttTransport], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk to fill can only be mounted by root")
    try:
        (disk / "filler").write_bytes(bytes(60 * 1024))

        def full(port: int, folder: Path) -> str:
            user = "user root\n" if os.geteuid() == 0 else ""
            return (
                f"{user}listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
                f"persistence_location {disk}/\nautosave_interval 1\nlog_dest file {folder}/mosquitto.log\n"
            )

        with Broker(configure=full) as broker:
            a, b = _party(opened, broker.port, "a"), _party(opened, broker.port, "b")
            b.listen("t/#")
            for n in range(30):
                a.transport.publish(f"t/{n}", bytes(50_000), retain=True)
            assert b.payloads(30) == [bytes(50_000)] * 30
            assert eventually(lambda: "No space left on device" in broker.log, 10), broker.log
            a.transport.publish("t/after", b"still here")
            assert b.payloads(1) == [b"still here"]
            for transport in opened:
                transport.close()
    finally:
        subprocess.run(["umount", disk], check=True)


# -- packets and links ------------------------------------------------------------------------------------------------


def test_a_packet_above_the_limit_is_refused_here_and_the_connection_lives(
    opened: list[MqttTransport], broker: Broker, fleet: str
) -> None:
    device = _party(opened, broker.port, f"{fleet}-d")
    device.listen(f"{fleet}/x")
    for _ in range(3):
        with pytest.raises(TooLarge):
            device.transport.publish(f"{fleet}/x", bytes(2_000_000))
    device.transport.publish(f"{fleet}/x", b"small")
    assert device.payloads(1) == [b"small"]
    assert opened[0].counts["lost"] == 0
    bare = RawClient(broker.port, None, f"{fleet}-bare")
    assert bare.connect()
    bare.publish(f"{fleet}/x", bytes(2_000_000))
    assert bare.lost.wait(5), "without the check the broker throws us out"
    bare.close()


def test_a_coordinator_cuts_its_blocks_to_a_brokers_packets_and_takes_turns_where_they_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packets half of an ordinary chunk, and less waits for the broker than one block has; released versions too."""
    monkeypatch.setattr("coordinator.speaker.REPEAT", 0.1)
    of = ModelSpec((InputSpec("torso", 6, 128),), classes=4, widths=(32, 64), bins=4, fusion=64)

    def small(port: int, folder: Path) -> str:
        user = "user root\n" if os.geteuid() == 0 else ""
        return f"{user}listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 65536\n"

    with Broker(configure=small) as broker:
        config = BrokerConfig(port=broker.port, queue_bytes=1 << 16, inflight=1)
        control, bulk = (MqttTransport(config, f"coordinator-{name}") for name in ("control", "bulk"))
        life = Coordinator(
            fleet="ward", spec=of, strategy=strategy("relief")(of, Settings()), pace=Pace(), folder=tmp_path,
            control=control, bulk=bulk,
        )  # fmt: skip
        life.versions.register(7, life.blocks, {}, of, life.base, {})
        life.versions.publish(7)
        stop = threading.Event()
        thread = threading.Thread(target=life.run, args=(stop,))
        thread.start()
        device = MqttTransport(BrokerConfig(port=broker.port), "d1")
        party, whole = Party(device), {}
        device.subscribe(WARD.chunk("+", "+"))
        reassembly = defaultdict(Reassembly)
        try:
            while set(whole) != {"torso", "shared", "torso.v7", "shared.v7"}:
                event = party.until(Received)
                _, name, k = WARD.parse(event.topic) or ()
                if k != "manifest" and (found := reassembly[name].add(decode(Chunk, event.payload))):
                    whole[name] = found
            for name, vector in life.blocks.items():
                assert whole[name] == whole[f"{name}.v7"] == vector.tobytes()
            assert len(whole["torso"]) > 65536
            assert eventually(lambda: not life.alarms), life.alarms
            assert thread.is_alive()
        finally:
            stop.set()
            life.wake()
            thread.join(10)
            device.close()


def test_an_update_in_chunks_crosses_a_link_of_50_kb_a_second(
    opened: list[MqttTransport], broker: Broker, fleet: str
) -> None:
    coordinator = _party(opened, broker.port, f"{fleet}-c")
    coordinator.listen(f"{fleet}/up")
    whole = os.urandom(450_000)
    with SlowLink(broker.port, 50_000) as link:
        device = _party(opened, link.port, f"{fleet}-d", keepalive=5)
        began = time.monotonic()
        for chunk in split("u1", whole, chunk_size(device.connected.max_payload)):
            device.transport.publish(f"{fleet}/up", chunk.encode())
        reassembly, result = Reassembly(), None
        while result is None:
            result = reassembly.add(decode(Chunk, coordinator.next(Received, 30).payload))
        assert result == whole
        assert 8 < time.monotonic() - began < 14, "the link was as slow as it should be, and no chunk was sent twice"
        assert opened[1].counts["lost"] == 0
        opened[1].close()


# -- devices that stay away -----------------------------------------------------------------------------------------


def _versions(publish: MqttTransport, fleet: str, megabytes: int) -> None:
    for version in range(megabytes):
        for k in range(9):
            payload = version.to_bytes(4, "big") + bytes(112 * 1024 - 4)
            publish.publish(f"{fleet}/block/acc/{k}", payload, retain=True)
        assert eventually(lambda: publish._window is None or publish._window._taken == publish._window._released)


def test_a_device_that_misses_200_model_versions_costs_the_broker_nothing(opened: list[MqttTransport]) -> None:
    with Broker() as broker:
        process = psutil.Process(broker.pid)
        coordinator = _party(opened, broker.port, "coordinator-bulk")
        device = _party(opened, broker.port, "d1", Will("ward/will", b"dead", delay=1))
        device.listen("ward/block/#")
        coordinator.listen("ward/will")
        device.transport.close(clean=False)
        assert coordinator.next(Received).payload == b"dead"  # and with it the session is over
        _versions(opened[0], "ward", 2)
        before = process.memory_info().rss
        _versions(opened[0], "ward", 200)
        grown = process.memory_info().rss - before
        assert grown < 8 << 20
        again = _party(opened, broker.port, "d1")
        again.transport.subscribe("ward/block/#")
        chunks = [again.next(Received) for _ in range(9)]
        assert all(event.retained and event.payload[:4] == (199).to_bytes(4, "big") for event in chunks)
        assert again.silent()
        # What this protects from: a session that is kept queues every version.
        keeper = RawClient(broker.port, None, "keeper", session=3600)
        assert keeper.connect()
        keeper.subscribe("ward/block/#")
        keeper.crash()
        before = process.memory_info().rss
        _versions(opened[0], "ward", 40)
        kept = process.memory_info().rss - before
        print(f"200 versions missed: {grown / 1e6:.1f} MB; a kept session and 40 versions: {kept / 1e6:.0f} MB")
        assert kept > 20 << 20


# -- storms -----------------------------------------------------------------------------------------------------------


async def _storm(port: int, contexts: list[ssl.SSLContext]) -> float:
    """Everybody connects at once; seconds until the last has its CONNACK. All stay until then."""
    hello = b"\x10\x10\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x03any"
    writers = []

    async def one(context: ssl.SSLContext) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="127.0.0.1")
        writers.append(writer)
        writer.write(hello)
        answer = await reader.readexactly(4)
        assert answer[0] == 0x20
        assert answer[3] == 0, "the broker let us in"

    began = time.monotonic()
    await asyncio.gather(*(one(context) for context in contexts))
    took = time.monotonic() - began
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.05)
    return took


def test_a_storm_of_500_mtls_reconnects_is_over_within_three_seconds(broker: Broker, tmp_path: Path) -> None:
    port = free_port()
    command = ["init", str(tmp_path / "site"), "--fleet", "ward", "--devices", "500", "--port", str(port)]
    assert CliRunner().invoke(app, command).exit_code == 0
    directory = Directory.open(tmp_path / "site")
    contexts = []
    for n in range(1, 501):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.load_verify_locations(directory.path / "ca" / "ca.pem")
        folder = directory.path / "identities" / "ward" / f"d{n:03d}"
        made.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        contexts.append(made)
    with secure(directory) as running:
        asyncio.run(_storm(port, contexts[:20]))
        took = []
        while len(took) < 3 and min(took, default=9.0) >= 3:  # these cores have other work beside us
            running.kill()
            running.restart()
            took.append(asyncio.run(_storm(port, contexts)))
    print(f"500 mTLS reconnects: {min(took):.2f} s")
    assert min(took) < 3
