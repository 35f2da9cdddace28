"""Old and new runtimes meet: one protocol version back is served, any other is refused with the reason."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from broker_config.launcher import Broker
from coordinator.registry import Registry
from models.spec import InputSpec, ModelSpec
from protocol.config import BrokerConfig
from protocol.messages import OLDEST, PROTOCOL, UNSAID, CoordinatorState, Status, decode, strange
from protocol.mqtt import MqttTransport
from tests.test_system_mosquitto import rounds, until
from tools.flashing.wheelhouse import ROOMS, SOURCE
from tools.watch import Watch

SPEC = ModelSpec((InputSpec("wrist", 3, 24),), classes=3, widths=(4,), bins=2)


def test_no_more_than_one_version_back_is_promised() -> None:
    assert max(1, PROTOCOL - 1) == OLDEST


@pytest.mark.parametrize(
    ("theirs", "oldest", "newest", "told"),
    [
        (1, 1, 1, ""),
        (2, 2, 3, ""),
        (3, 2, 3, ""),
        (1, 2, 3, "the device speaks protocol 1, this side 2 to 3: update the device"),
        (4, 2, 3, "the device speaks protocol 4, this side 2 to 3: update this side"),
    ],
)
def test_the_reason_names_both_versions_and_the_side_to_update(
    theirs: int, oldest: int, newest: int, told: str
) -> None:
    assert strange(theirs, "the device", oldest, newest) == told


def test_what_a_peer_leaves_out_is_the_first_version_whatever_ours_is() -> None:
    """Defaults are not sent: were ours the default, a newer peer would look like an older one and the other way."""
    assert decode(Status, msgpack.packb({"online": True, "boot": "b"})).protocol == UNSAID == 1
    assert decode(CoordinatorState, msgpack.packb({"online": True})).protocol == UNSAID
    for said in (2, 3):
        assert decode(Status, Status(online=True, boot="b", protocol=said).encode()).protocol == said


def test_a_refused_device_stays_known_so_that_it_can_be_updated() -> None:
    registry = Registry(SPEC)
    registry.arrive(
        "old", Status(online=True, boot="b", protocol=0, modalities={"wrist": 3}, windows=9, can_train=True), 0
    )
    registry.arrive(
        "ours", Status(online=True, boot="b", protocol=PROTOCOL, modalities={"wrist": 3}, windows=9, can_train=True), 0
    )
    assert registry.ready() == ["ours"]
    assert "old" in registry.devices


def test_fields_that_only_one_side_knows_disturb_nobody() -> None:
    known = Status(online=True, boot="b", runtime="0.1.0", release=3)
    plain: dict[str, Any] = msgpack.unpackb(known.encode())
    assert decode(Status, msgpack.packb({**plain, "of_tomorrow": [1, {"a": 2}]})) == known
    del plain["release"], plain["runtime"]
    assert decode(Status, msgpack.packb(plain)).release == 0


# -- real processes, of which one side is another version ------------------------------------------------


def another(folder: Path, protocol: int, oldest: int) -> Path:
    """This source as a version that speaks `oldest` to `protocol`."""
    for room in ROOMS:
        shutil.copytree(SOURCE / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "protocol/messages.py"
    text = file.read_text()
    for name, value in (("PROTOCOL", protocol), ("OLDEST", oldest)):
        text, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    file.write_text(text)
    return folder


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(broker: Broker, fleet: str, tmp_path: Path) -> Iterator[Start]:
    """A way to start parties of a small fleet from any source folder."""
    pytest.importorskip("torch")
    text = f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n[coordinator]\nfolder = "run"\nrounds = 1\n'
    text += '[[device]]\nid = "band"\nstate = "state"\ntelemetry = 0\npower = []\n'
    text += '[device.source]\nsubject = "1"\nspeed = inf\npart = [0.0, 0.1]\n'
    (tmp_path / "fleet.toml").write_text(text)
    running: list[subprocess.Popen[bytes]] = []

    def begin(source: Path, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tools.cli", *arguments, "--config", str(tmp_path / "fleet.toml")]
        with (tmp_path / f"log-{arguments[0]}").open("ab") as log:
            running.append(
                subprocess.Popen(command, cwd=source, stdout=log, stderr=log, start_new_session=True,
                                 env={**os.environ, "PYTHONPATH": str(source)})
            )  # fmt: skip
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.timeout(240)
def test_a_coordinator_serves_a_device_one_version_back(start: Start, tmp_path: Path) -> None:
    newer = another(tmp_path / "newer", PROTOCOL + 1, PROTOCOL)
    start(SOURCE, "device", "run", "--device", "band")
    assert start(newer, "coordinator", "run").wait(150) == 0
    assert [line["updates"] for line in rounds(tmp_path)] == [1]
    assert f"the coordinator speaks protocol {PROTOCOL + 1}" in (tmp_path / "log-device").read_text()


@pytest.mark.timeout(240)
def test_a_device_that_is_too_new_is_refused_with_the_reason(
    start: Start, tmp_path: Path, broker: Broker, fleet: str
) -> None:
    newer = another(tmp_path / "newer", PROTOCOL + 1, PROTOCOL)
    start(newer, "device", "run", "--device", "band")
    start(SOURCE, "coordinator", "run")
    with Watch(fleet, MqttTransport(BrokerConfig(port=broker.port), "operator-test-watch")) as watch:

        def why() -> str:
            return str(((watch.next(1.0) or {}).get("devices") or {}).get("band", {}).get("why", ""))

        until(lambda: why() == f"the device speaks protocol {PROTOCOL + 1}, this side {PROTOCOL}: update this side", 90)
    assert not rounds(tmp_path)
