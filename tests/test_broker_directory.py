"""A broker's folder on disk: names, files, what is never overwritten, what the checks find."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from broker_config import check, names, pki
from broker_config.acl import Part
from broker_config.directory import BadDirectory, Directory, write
from broker_config.names import BadNames
from broker_config.sizing import sizes
from protocol.topics import MAX_NAME, check_name
from tools.broker import app
from tools.steering import fleet_of

relief = CliRunner()


def _site(folder: Path, *more: str, devices: str = "2") -> Directory:
    told = relief.invoke(app, ["init", str(folder), "--fleet", "ward", "--devices", devices, *more])
    assert told.exit_code == 0, told.output
    return Directory.open(folder)


# -- device lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"a\nb\na\n", "line 3: 'a' again, it is on line 1 already"),
        (b"a\n\nb\n", "line 2: no name"),
        (b"a/b\n", "line 1: device 'a/b'"),
        (b"a\nb+\n", "line 2: device 'b+'"),
        (b"#\n", "line 1: device '#'"),
        (b"a\0b\n", "line 1: device 'a\\x00b'"),
        (b"x" * 65 + b"\n", "line 1: device"),
        (b"ok\n\xff\xfe\n", "line 2: not UTF-8 at byte 1"),
        (b"operator-jo\n", "line 1: device 'operator-jo': names that begin with 'operator'"),
        (b"broker\n", "names that begin with 'broker'"),
        (b" vorn", "line 1: device ' vorn'"),
    ],
)
def test_a_name_that_cannot_be_is_refused_by_its_line(tmp_path: Path, text: bytes, told: str) -> None:
    (tmp_path / "devices").write_bytes(text)
    with pytest.raises(BadNames) as caught:
        names.devices(str(tmp_path / "devices"))
    assert told in str(caught.value)


def test_every_wrong_line_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "devices").write_text("a\na\nb+\n")
    told = relief.invoke(app, ["init", str(tmp_path / "x"), "--fleet", "f", "--devices", str(tmp_path / "devices")])
    assert told.exit_code == 2
    assert "line 2" in told.output
    assert "line 3" in told.output
    assert not (tmp_path / "x").exists()


def test_comments_windows_line_ends_and_a_missing_last_one_are_fine(tmp_path: Path) -> None:
    (tmp_path / "devices").write_bytes(b"# ward 3\r\nbed-1\r\nbed-2")
    assert names.devices(str(tmp_path / "devices")) == ["bed-1", "bed-2"]


def test_a_number_makes_names_of_one_length() -> None:
    assert names.devices("012")[:2] == ["d001", "d002"]
    with pytest.raises(BadNames, match="between 1 and 100,000"):
        names.devices("0")


@given(st.text(max_size=80))
def test_a_name_that_passes_is_one_level_of_a_topic(name: str) -> None:
    try:
        check_name(name, "device")
    except ValueError:
        return
    assert 1 <= len(name.encode()) <= MAX_NAME
    assert not set(name) & set("+#/\0 $")


@pytest.mark.parametrize(
    ("who", "person", "tools"),
    [
        ("jo", "jo", names.TOOLS),
        ("jo-status", "jo", ("status",)),
        ("anna-maria", "anna-maria", names.TOOLS),
        ("anna-maria-steer", "anna-maria", ("steer",)),
        ("jo-laptop", "jo-laptop", names.TOOLS),
        ("status", "status", names.TOOLS),
        ("bob-stauts-status", "bob-stauts", ("status",)),
    ],
)
def test_an_operators_name_may_hold_dashes_and_ends_with_a_tool_only_if_there_is_such_a_one(
    who: str, person: str, tools: tuple[str, ...]
) -> None:
    assert names.operator(who) == (person, tools)


def test_the_identities_of_a_name_with_a_dash_are_those_that_the_operators_tools_ask_for(tmp_path: Path) -> None:
    site = _site(tmp_path / "site", "--operator", "anna-maria")
    wanted = {fleet_of(operator="anna-maria").identity(tool) for tool in names.TOOLS}
    assert {one.name for one in site.record.of(Part.OPERATOR)} == wanted


@pytest.mark.parametrize(
    ("who", "meant"),
    [
        ("bob-stauts", "bob-status"),
        ("bob-steers", "bob-steer"),
        ("bob-lable", "bob-label"),
        ("a-b-Update", "a-b-update"),
    ],
)
def test_a_tool_that_is_mistyped_makes_no_person_with_all_tools(tmp_path: Path, who: str, meant: str) -> None:
    told = relief.invoke(app, ["init", str(tmp_path / "x"), "--fleet", "f", "--devices", "1", "--operator", who])
    assert told.exit_code == 2
    assert f"write {meant}, or" in told.output
    assert not (tmp_path / "x").exists()


def test_a_mistyped_tool_leaves_no_device_half_added(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    command = ["add", str(site.path), "--fleet", "ward", "--device", "bed-7", "--operator", "bob-stauts"]
    assert relief.invoke(app, command).exit_code == 2
    assert not (site.path / "identities" / "ward" / "bed-7").exists()


# -- the folder -----------------------------------------------------------------------------------------------------


def test_init_makes_a_certificate_for_everybody_and_closes_the_keys(tmp_path: Path) -> None:
    site = _site(tmp_path / "site", "--operator", "jo-status")
    made = {path.parent.name for path in (tmp_path / "site").rglob("cert.pem")}
    assert made == {"coordinator-control", "coordinator-bulk", "d1", "d2", "operator-jo-status"}
    whole = _site(tmp_path / "whole", "--operator", "jo")
    assert [one.name for one in whole.record.of(Part.OPERATOR)] == [
        f"operator-jo-{tool}" for tool in ("dashboard", "label", "status", "steer", "update")
    ]
    for path in (*site.path.rglob("*.key"), *site.path.rglob("key.pem")):
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert (site.path / "ca").stat().st_mode & 0o077 == 0
    assert pki.valid_until(site.path / "broker" / "crl.pem") > datetime.now(timezone.utc) + timedelta(days=365)
    assert (site.path / "SUMMARY.md").read_text().count("| `") == 15


def test_openssl_accepts_what_was_signed(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here")
    site = _site(tmp_path / "site")
    for cert, purpose in (
        (site.path / "broker/broker.pem", "sslserver"),
        (site.folder(site.find("d1")) / "cert.pem", "sslclient"),
    ):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", site.path / "ca/ca.pem"]
        command += ["-crl_check", "-CRLfile", site.path / "broker/crl.pem", cert]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr


def test_a_folder_with_a_ca_is_never_overwritten(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    before = (site.path / "ca" / "ca.key").read_bytes()
    told = relief.invoke(app, ["init", str(site.path), "--fleet", "other", "--devices", "1"])
    assert told.exit_code == 2
    assert "holds a CA already" in told.output
    assert (site.path / "ca" / "ca.key").read_bytes() == before


def test_a_folder_with_anything_in_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BadDirectory, match="not empty"):
        Directory.create(tmp_path, hosts=["h"], port=1, home=None, model_bytes=1)


def test_a_fleet_name_that_no_certificate_takes_is_refused(tmp_path: Path) -> None:
    told = relief.invoke(app, ["init", str(tmp_path / "x"), "--fleet", "f" * 50, "--devices", "1"])
    assert told.exit_code == 2
    assert "at most 44 bytes" in told.output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", [["add", "--fleet", "f"], ["check"], ["renew"], ["revoke", "--", "d1"]])
def test_commands_say_when_the_folder_is_none(tmp_path: Path, command: list[str]) -> None:
    told = relief.invoke(app, [command[0], str(tmp_path / "absent"), *command[1:]])
    assert told.exit_code == 2
    assert "make one with `relief broker init" in told.output


def test_the_record_survives_writing_and_reading(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    site.revoke(site.find("d1"), forget=True)
    site.save()
    again = Directory.open(site.path)
    assert again.record == site.record
    assert [one.name for one in again.record.revoked] == ["d1"]


def test_names_are_unique_across_the_fleets_of_a_broker(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    site.add_fleet("annexe")
    with pytest.raises(BadDirectory, match="'d1' exists already in fleet 'ward'"):
        site.add_device("annexe", "d1")


def test_a_revoked_name_loses_its_files_and_rights(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    told = relief.invoke(app, ["revoke", str(site.path), "d1"])
    assert told.exit_code == 0, told.output
    assert "does not run here" in told.output
    assert not site.folder(site.find("d1")).exists()
    assert "user d1\n" not in (site.path / "broker" / "acl").read_text()


def test_an_unknown_name_is_said_with_those_there_are(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    told = relief.invoke(app, ["rotate", str(site.path), "d9"])
    assert told.exit_code == 2
    assert "knows 0 identities called 'd9'; there are: d1, d2" in told.output


def test_renew_takes_what_ends_soon_and_always_the_broker(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    broker = (site.path / "broker" / "broker.pem").read_bytes()
    d1 = (site.folder(site.find("d1")) / "cert.pem").read_bytes()
    relief.invoke(app, ["renew", str(site.path)])
    assert (site.path / "broker" / "broker.pem").read_bytes() != broker
    assert (site.folder(site.find("d1")) / "cert.pem").read_bytes() == d1
    relief.invoke(app, ["renew", str(site.path), "--days", "1000"])
    assert (site.folder(site.find("d1")) / "cert.pem").read_bytes() != d1


# -- checks ---------------------------------------------------------------------------------------------------------


def _found(site: Directory, name: str) -> list[check.Finding]:
    return [finding for finding in check.inspect(site) if finding.check == name and finding.ok is not True]


def test_a_sound_folder_has_no_findings(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    assert [finding for finding in check.inspect(site) if not finding.ok and finding.check != "mosquitto"] == []


def test_what_has_ended_and_what_ends_soon_are_told_apart(tmp_path: Path) -> None:
    site, now = _site(tmp_path / "site"), datetime.now(timezone.utc)
    authority = pki.Authority.load(site.path / "ca")
    write(site.path / "broker" / "crl.pem", authority.crl([], until=now - timedelta(hours=1)))
    write(site.folder(site.find("d1")) / "cert.pem", authority.client("d1", until=now + timedelta(days=9)).cert)
    ended, soon = _found(site, "dates")
    assert ended.ok is False
    assert "the CRL ended" in ended.told
    assert soon.ok is None
    assert "d1 ends in 8 days" in soon.told
    assert "relief broker renew" in soon.todo


def test_a_key_open_to_others_and_a_stranger_among_the_certificates_are_found(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    d1, d2 = (site.folder(site.find(name)) for name in ("d1", "d2"))
    (d1 / "key.pem").chmod(0o644)
    (d2 / "cert.pem").write_bytes(pki.Authority.create("else").client("d2").cert)
    assert str(d1 / "key.pem") in _found(site, "keys")[0].told
    assert str(d2 / "cert.pem") in _found(site, "chain")[0].told


def test_an_access_list_changed_by_hand_is_found(tmp_path: Path) -> None:
    site = _site(tmp_path / "site")
    with (site.path / "broker" / "acl").open("a") as file:
        file.write("topic readwrite #\n")
    assert "acl was changed by hand" in _found(site, "drift")[0].told
    told = relief.invoke(app, ["check", str(site.path)])
    assert "warn  drift" in told.output


# -- what is computed ------------------------------------------------------------------------------------------------


@given(st.integers(1, 100_000), st.integers(1, 50_000_000))
def test_queues_hold_a_whole_fleets_updates(devices: int, model: int) -> None:
    computed = sizes(devices, model)
    assert computed.bytes >= 2 * devices * model
    assert computed.messages >= devices * -(-model // (112 * 1024))
    assert f"{devices:,} devices" in computed.said[1]


def test_the_computation_stands_in_the_configuration(tmp_path: Path) -> None:
    site = _site(tmp_path / "site", "--model-bytes", "50000", devices="2000")
    conf = (site.path / "broker" / "mosquitto.conf").read_text()
    assert "# 2,000 devices x (1 + 4 messages) x 2 rounds = 20,000 messages." in conf
    assert "max_queued_messages 20000\n" in conf


def test_no_line_of_the_configuration_carries_a_trailing_comment(tmp_path: Path) -> None:
    for line in (_site(tmp_path / "site").path / "broker" / "mosquitto.conf").read_text().splitlines():
        assert line.startswith("#") or "#" not in line


def test_a_bridge_speaks_for_its_sites_devices_only(tmp_path: Path) -> None:
    centre = _site(tmp_path / "centre")
    (tmp_path / "devices").write_text("north-1\nnorth-2\n")
    told = relief.invoke(
        app, ["add", str(centre.path), "--fleet", "ward", "--devices", str(tmp_path / "devices"), "--site", "north"]
    )
    assert told.exit_code == 0, told.output
    acl = (centre.path / "broker" / "acl").read_text().partition("user bridge-north\n")[2]
    assert "topic write relief/v1/ward/device/north-1/update\n" in acl
    assert "d1" not in acl
    assert [one.name for one in Directory.open(centre.path).record.of(Part.BRIDGE)] == ["bridge-north"]
