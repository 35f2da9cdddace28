"""The `site` profile at a real Mosquitto: who gets in, who is thrown out, and what the one outside is told."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_config import pki
from broker_config.directory import Directory, write
from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.messages import Status, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Event, Lost, Received, Stopped, Will
from tests.parties import PATIENCE, Party
from tests.raw_client import RawClient, context, free_port
from tools.broker import app, secure
from tools.broker_live import look

relief = CliRunner()
WARD = Topics("ward")


class Site:
    """A running broker with its folder, and the parties that talk to it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.port = folder / "site", free_port()
        self._run("init", "--fleet", "ward", "--devices", "3", "--port", str(self.port), "--operator", "jo-status")
        self.directory = Directory.open(self.path)
        self.stack = contextlib.ExitStack()
        self.broker = self.stack.enter_context(secure(self.directory))

    def do(self, command: str, *more: str) -> str:
        """One `relief broker` command, which must succeed; what it said."""
        told = self._run(command, *more)
        self.directory = Directory.open(self.path)
        return told

    def _run(self, command: str, *more: str) -> str:
        told = relief.invoke(app, [command, str(self.path), *more])
        assert told.exit_code == 0, told.output
        return told.output

    def config(self, fleet: str = "ward", **more: object) -> BrokerConfig:
        files = {"identities": self.path / "identities" / fleet}
        return BrokerConfig.model_validate(
            {"port": self.port, "reconnect_min": 0.02, "reconnect_max": 0.2, **files, **more}
        )

    def party(self, name: str, will: Will | None = None, *, wait: bool = True, **more: object) -> Party:
        transport = MqttTransport(self.config(**more), name)
        self.stack.callback(transport.close)
        events: queue.SimpleQueue[Event] | None = None if wait else queue.SimpleQueue()
        return Party(transport, will, events)

    def subscribed(self, party: Party, *filters: str) -> None:
        """Subscribe and let it happen: nobody here may write a topic just to hear itself."""
        party.transport.subscribe(*filters)
        time.sleep(0.15)

    def copy(self, name: str, to: Path) -> Path:
        """Steal an identity's files."""
        folder = self.directory.folder(self.directory.find(name))
        to.mkdir(parents=True)
        for file in ("ca.pem", "cert.pem", "key.pem"):
            (to / file).write_bytes((folder / file).read_bytes())
        return to


@pytest.fixture
def site(broker: Broker, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stack.close()


# -- who gets in ----------------------------------------------------------------------------------------------------


def test_every_party_works_on_its_own_certificate_from_one_configuration(site: Site) -> None:
    control, device = site.party("coordinator-control"), site.party("d1")
    site.subscribed(control, WARD.device("+", "status"))
    site.subscribed(device, WARD.device("d1", "assignment"))
    device.transport.publish(WARD.device("d1", "status"), b"born", retain=True)
    assert control.next(Received).payload == b"born"
    control.transport.publish(WARD.device("d1", "assignment"), b"work", expiry=60)
    assert device.next(Received).payload == b"work"


def test_plain_text_and_what_is_older_than_tls_1_2_are_refused(site: Site) -> None:
    assert not RawClient(site.port).connect(1.0)
    old = context(site.path / "identities/ward/d1", site.path / "ca/ca.pem")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("DEFAULT@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", site.port)) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)version|alert"),
    ):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


def test_nobody_takes_the_coordinators_client_id(site: Site) -> None:
    control = site.party("coordinator-control")
    thief = RawClient(
        site.port, context(site.path / "identities/ward/d1", site.path / "ca/ca.pem"), "ward.coordinator-control"
    )
    assert thief.connect()
    assert control.silent(0.3)
    thief.close()


def test_publishing_where_one_may_not_stops_and_names_the_topic(site: Site) -> None:
    device = site.party("d1")
    device.transport.publish(WARD.device("d2", "status"), b"forged")
    stopped = device.next(Stopped)
    assert stopped.code == 135
    assert "publish on relief/v1/ward/device/d2/status" in stopped.reason


def test_the_broker_is_looked_at_from_outside(site: Site) -> None:
    findings = look(site.directory)
    assert [finding.ok for finding in findings] == [True, True, True]
    told = relief.invoke(app, ["check", str(site.path)])
    assert told.exit_code == 0, told.output
    assert "0 failed, 0 warnings" in told.output.splitlines()[-1]


# -- who is thrown out -----------------------------------------------------------------------------------------------


def test_a_stolen_key_is_cut_off_within_two_seconds_of_revoke(site: Site, tmp_path: Path) -> None:
    stolen = site.copy("d1", tmp_path / "stolen" / "d1")
    control = site.party("coordinator-control")
    site.subscribed(control, WARD.device("+", "status"))
    thief = site.party("d1", wait=False, identities=stolen.parent)
    thief.next(Connected)
    birth = Status(online=True, boot="b1")
    thief.transport.publish(WARD.device("d1", "status"), birth.encode(), retain=True)
    assert decode(Status, control.next(Received).payload) == birth
    began = time.monotonic()
    told = site.do("revoke", "d1")
    assert "its session is cut" in told
    assert time.monotonic() - began < 2
    thief.next(Lost)
    stopped = thief.until(Stopped)
    assert f"certificate {stolen / 'cert.pem'} of d1 was revoked" in stopped.reason
    death = decode(Status, control.next(Received).payload)
    assert (death.online, death.boot, death.reason) == (False, "b1", "revoked")


def test_a_rotated_key_works_and_the_old_one_does_not(site: Site, tmp_path: Path) -> None:
    old = site.copy("d2", tmp_path / "old" / "d2")
    device = site.party("d2")
    site.do("rotate", "d2")
    device.next(Lost)
    device.until(Connected)  # by itself: the files it was told of are the new ones
    before = site.party("d2", wait=False, identities=old.parent)
    assert "was revoked" in before.until(Stopped).reason


def test_a_device_added_to_a_running_broker_works_at_once(site: Site) -> None:
    pid = site.broker.pid
    site.do("add", "--fleet", "ward", "--device", "late")
    control = site.party("coordinator-control")
    site.subscribed(control, WARD.device("+", "report"))
    site.party("late").transport.publish(WARD.device("late", "report"), b"here")
    assert control.next(Received).payload == b"here"
    assert site.broker.pid == pid


def test_renewed_certificates_are_taken_without_cutting_anybody(site: Site) -> None:
    device = site.party("d1")
    site.do("renew", "--days", "1000")
    assert device.silent(0.3)
    site.party("d2")


def test_purge_clears_one_fleet_and_leaves_the_other(site: Site) -> None:
    site.do("add", "--fleet", "annexe", "--device", "x1")
    control, other = site.party("coordinator-control"), site.party("coordinator-control", fleet="annexe")
    site.party("d1").transport.publish(WARD.device("d1", "status"), b"1", retain=True)
    control.transport.publish(WARD.coordinator("state"), b"2", retain=True)
    other.transport.publish(Topics("annexe").coordinator("state"), b"3", retain=True)
    operator = site.party("operator-jo-status")
    site.subscribed(operator, f"{WARD.root}/#")
    assert "2 retained messages of fleet ward cleared" in site.do("purge", "ward")
    assert "0 retained messages of fleet ward" in site.do("purge", "ward")
    assert "1 retained messages of fleet annexe" in site.do("purge", "annexe")
    assert "purge" not in (site.path / "broker" / "acl").read_text()


# -- what the one outside is told ------------------------------------------------------------------------------------


def _refusal(site: Site, folder: Path, **more: object) -> str:
    """What stopped it for good; a broker's alert can get lost with its connection, and is heard at the next one."""
    party = site.party("d1", wait=False, identities=folder.parent, **more)
    return party.until(Stopped).reason


def test_an_expired_certificate_is_named_with_its_owner_and_date(site: Site, tmp_path: Path) -> None:
    folder = site.copy("d1", tmp_path / "mine" / "d1")
    ended = datetime.now(timezone.utc) - timedelta(days=3)
    issued = pki.Authority.load(site.path / "ca").client("d1", since=ended - timedelta(days=5), until=ended)
    write(folder / "cert.pem", issued.cert)
    write(folder / "key.pem", issued.key)
    told = _refusal(site, folder)
    assert f"{folder / 'cert.pem'} of d1 has expired since {ended:%Y-%m-%d}" in told
    assert "relief broker renew" in told


def test_a_certificate_of_another_ca_is_said_so(site: Site, tmp_path: Path) -> None:
    folder = site.copy("d1", tmp_path / "mine" / "d1")
    issued = pki.Authority.create("somebody").client("d1")
    write(folder / "cert.pem", issued.cert)
    write(folder / "key.pem", issued.key)
    assert "of d1 is of another CA than the broker's" in _refusal(site, folder)


def test_a_key_that_does_not_fit_and_a_missing_file_are_told_apart(site: Site, tmp_path: Path) -> None:
    folder = site.copy("d1", tmp_path / "mine" / "d1")
    (folder / "key.pem").write_bytes((site.path / "identities/ward/d2/key.pem").read_bytes())
    assert "do not fit together" in _refusal(site, folder)
    (folder / "key.pem").unlink()
    assert f"{folder / 'key.pem'} cannot be read: No such file" in _refusal(site, folder)


def test_no_certificate_at_all_is_said_so(site: Site) -> None:
    config = BrokerConfig(port=site.port, ca=site.path / "ca" / "ca.pem", reconnect_min=0.02, reconnect_max=0.2)
    transport = MqttTransport(config, "d1")
    site.stack.callback(transport.close)
    assert "broker.cert is not set" in Party(transport, events=queue.SimpleQueue()).until(Stopped).reason


def test_a_broker_under_another_name_or_ca_is_not_believed_and_asked_again(site: Site, tmp_path: Path) -> None:
    assert "127.0.0.2" in site.party("d1", wait=False, host="127.0.0.2").next(Lost).reason
    folder = site.copy("d2", tmp_path / "other" / "d1")
    write(folder / "ca.pem", pki.Authority.create("else").cert)
    party = site.party("d1", wait=False, identities=folder.parent)
    assert "was not accepted" in party.next(Lost).reason
    party.next(Lost)


def test_an_expired_broker_certificate_is_named_as_the_brokers(site: Site) -> None:
    ended = datetime.now(timezone.utc) - timedelta(days=3)
    issued = pki.Authority.load(site.path / "ca").server(["127.0.0.1"], until=ended)
    write(site.path / "broker" / "broker.pem", issued.cert)
    write(site.path / "broker" / "broker.key", issued.key, secret=True)
    site.broker.kill()
    site.broker.restart()
    party = site.party("d1", wait=False)
    told = party.next(Lost).reason
    assert "the certificate of the broker at 127.0.0.1" in told
    assert "expired" in told


def test_an_expired_crl_locks_everybody_out_and_renew_lets_them_in_again(site: Site) -> None:
    authority = pki.Authority.load(site.path / "ca")
    ended = datetime.now(timezone.utc) - timedelta(seconds=30)
    write(site.path / "broker" / "crl.pem", authority.crl([], until=ended))
    site.broker.kill()
    site.broker.restart()
    party = site.party("d1", wait=False)
    assert not isinstance(party.events.get(timeout=PATIENCE), Connected)
    site.do("renew")
    site.party("d2")


# -- the command -----------------------------------------------------------------------------------------------------


def test_up_runs_until_it_is_interrupted_and_leaves_nothing_running(tmp_path: Path, broker: Broker) -> None:
    folder, port = tmp_path / "site", free_port()
    relief.invoke(app, ["init", str(folder), "--fleet", "f", "--devices", "1", "--port", str(port)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", "broker", "up", str(folder)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert f"on port {port}: mTLS" in process.stdout.readline()
    process.terminate()
    assert process.wait(3) == 0
    assert "stopped" in process.stdout.read()
    process.stdout.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


# -- a site's broker and a central one -------------------------------------------------------------------------------


def test_a_coordinator_at_the_centre_reaches_devices_at_a_site(site: Site, tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    devices = tmp_path / "devices"
    devices.write_text("north-1\nnorth-2\n")
    port = free_port()
    told = relief.invoke(
        app, ["init", str(tmp_path / "north" / "b"), "--fleet", "ward", "--devices", str(devices), "--port", str(port)]
    )
    assert told.exit_code == 0, told.output
    site.do("add", "--fleet", "ward", "--devices", str(devices), "--site", "north")
    bridge = site.path / "identities" / "ward" / "bridge-north"
    more = ["--to", f"localhost:{site.port}", "--identity", str(bridge)]
    told = relief.invoke(app, ["link", str(tmp_path / "north" / "b"), "--fleet", "ward", *more])
    assert told.exit_code == 0, told.output
    control = site.party("coordinator-control")
    site.subscribed(control, WARD.device("+", "status"))
    control.transport.publish(WARD.coordinator("state"), b"epoch 7", retain=True)
    north = Directory.open(tmp_path / "north" / "b")
    with secure(north):
        config = BrokerConfig(port=port, identities=north.path / "identities" / "ward", reconnect_min=0.02)
        transport = MqttTransport(config, "north-1")
        device = Party(transport)
        transport.subscribe(WARD.coordinator("state"), WARD.device("north-1", "assignment"))
        state = device.next(Received)
        assert state.payload == b"epoch 7"
        transport.publish(WARD.device("north-1", "status"), b"born", retain=True)
        assert control.next(Received).payload == b"born"
        control.transport.publish(WARD.device("north-1", "assignment"), b"work")
        assert device.next(Received).payload == b"work"
        transport.close()
    late = site.party("operator-jo-status")
    late.transport.subscribe(WARD.device("north-1", "status"))
    assert late.next(Received) == Received(WARD.device("north-1", "status"), b"born", retained=True)
