"""Signing requests: a board that made its own key gets a certificate for its own name, and for nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import AttributeOID, NameOID
from typer.testing import CliRunner

from broker_config import requests
from broker_config.directory import Directory
from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.messages import Status, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Received
from tests.parties import Party
from tests.raw_client import free_port
from tools.broker import app, secure
from tools.flashing.configuration import device_files

relief = CliRunner()
ROOT = Path(__file__).parents[1]
PEM, PLAIN = serialization.Encoding.PEM, serialization.NoEncryption()
Change = Callable[[x509.CertificateSigningRequestBuilder], x509.CertificateSigningRequestBuilder]


def request(
    path: Path, name: str = "bed-7", key: object = None, change: Change | None = None, with_hash: object = None
) -> Path:
    """A signing request, by default a good one."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    made = (change or (lambda b: b))(builder).sign(key, with_hash or hashes.SHA256())  # type: ignore[arg-type]
    path.write_bytes(made.public_bytes(PEM))
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    told = relief.invoke(app, ["init", str(tmp_path / "site"), "--fleet", "ward", "--devices", "2"])
    assert told.exit_code == 0, told.output
    return tmp_path / "site"


def add(site: Path, *files: Path, expected: int = 0, devices: tuple[str, ...] = ()) -> str:
    """`relief broker add --csr`: its words."""
    more = [part for file in files for part in ("--csr", str(file))] + [p for d in devices for p in ("--device", d)]
    told = relief.invoke(app, ["add", str(site), "--fleet", "ward", *more])
    assert told.exit_code == expected, told.output
    return told.output


def test_a_good_request_gets_a_certificate_for_its_key_and_rights_at_the_broker(site: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    said = add(site, request(tmp_path / "request.csr", key=key))
    beside = tmp_path / "bed-7.cert.pem"
    assert f"copy {beside} to the board as /etc/relief/identity/cert.pem" in said
    cert = x509.load_pem_x509_certificate(beside.read_bytes())
    assert cert.public_key() == key.public_key()
    assert cert.subject.rfc4514_string() == "CN=bed-7"
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    own = site / "identities/ward/bed-7"
    assert {file.name for file in own.iterdir()} == {"ca.pem", "cert.pem"}, "there is no key to hand out"
    assert "\nuser bed-7\n" in (site / "broker/acl").read_text()
    told = relief.invoke(app, ["check", str(site)])
    assert "0 failed" in told.output.splitlines()[-1], told.output


@pytest.mark.parametrize(
    ("bits", "curve"), [(2048, None), (3072, None), (None, ec.SECP384R1())], ids=["rsa-2048", "rsa-3072", "p-384"]
)
def test_other_strong_keys_are_taken(site: Path, tmp_path: Path, bits: int | None, curve: object) -> None:
    key = rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(curve)  # type: ignore[arg-type]
    add(site, request(tmp_path / "a.csr", key=key))


def _ca(builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequestBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)


def _host(builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequestBuilder:
    return builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("broker.example.org")]), critical=False)


def _password(builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequestBuilder:
    return builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"let me in")


def _two_names(builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequestBuilder:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in ("bed-7", "ward.coordinator-control")]
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))


def _unit(builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequestBuilder:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, "bed-7"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ward")]
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))


def _nameless(builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequestBuilder:
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"change": _ca}, "asks for basicConstraints: a request holds a name and a key, nothing else"),
        ({"change": _host}, "asks for subjectAltName"),
        ({"change": _password}, "asks for attribute 1.2.840.113549.1.9.7"),
        ({"change": _two_names}, "the device's name as CN, alone, is taken"),
        ({"change": _unit}, "the device's name as CN, alone, is taken"),
        ({"change": _nameless}, "the device's name as CN, alone, is taken"),
        ({"name": "ward.coordinator-control"}, "'ward.coordinator-control' exists already in fleet 'ward'"),
        ({"name": "coordinator-control"}, "names that begin with 'coordinator' are kept for others"),
        ({"name": "operator-jo-steer"}, "names that begin with 'operator' are kept for others"),
        ({"name": "broker"}, "names that begin with 'broker' are kept for others"),
        ({"name": "a/+/#"}, "device 'a/+/#'"),
        ({"name": "bed\n7"}, "device 'bed\\n7'"),
        ({"name": "d1"}, "'d1' exists already in fleet 'ward': `relief broker revoke"),
        ({"key": rsa.generate_private_key(65537, 1024)}, "its RSA key has 1024 bits: 2048 to 4096 are taken"),
        ({"key": rsa.generate_private_key(3, 2048)}, "its RSA key has the exponent 3: 65537 is taken"),
        ({"key": ec.generate_private_key(ec.SECP224R1())}, "its key is of curve secp224r1: P-256 or P-384 are taken"),
        ({"key": dsa.generate_private_key(2048)}, "its key is of kind DSA"),
        ({"with_hash": hashes.SHA224()}, "is signed with sha224: SHA-256, -384 or -512 are taken"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_request_for_more_than_a_devices_name_is_refused_in_one_line(
    site: Path, tmp_path: Path, more: dict[str, object], told: str
) -> None:
    before = (site / "record.json").read_bytes()
    said = add(site, request(tmp_path / "bad.csr", **more), expected=2)  # type: ignore[arg-type]
    assert told in said
    assert said.splitlines()[1:] == ["exit code 2 (command): docs/exit-codes.md#2-usage"]
    assert (site / "record.json").read_bytes() == before
    assert not list(tmp_path.glob("*.cert.pem"))


def _changed(text: bytes) -> bytes:
    at = len(text) // 2
    return text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :]


def _another_name(text: bytes) -> bytes:
    der = x509.load_pem_x509_csr(text).public_bytes(serialization.Encoding.DER).replace(b"bed-7", b"bed-8")
    import base64

    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: b"", "is no signing request in PEM"),
        (lambda text: os.urandom(400), "is no signing request in PEM"),
        (lambda text: text[: len(text) // 2], "is no signing request in PEM"),
        (lambda text: b"x" * 70_000, "is larger than 64 KiB"),
        (lambda text: text + text, "holds more than one request"),
        (lambda text: text.replace(b"CERTIFICATE REQUEST", b"CERTIFICATE"), "is no signing request in PEM"),
        (_another_name, "its signature is not of the key that it holds"),
        (_changed, "bad.csr: "),
    ],
    ids=["empty", "noise", "half", "huge", "two", "wrong kind", "renamed", "changed"],
)
def test_what_is_no_request_is_refused_in_one_line(
    site: Path, tmp_path: Path, spoil: Callable[[bytes], bytes], told: str
) -> None:
    bad = tmp_path / "bad.csr"
    bad.write_bytes(spoil(request(tmp_path / "good.csr").read_bytes()))
    said = add(site, bad, expected=2)
    assert told in said
    assert said.splitlines()[1:] == ["exit code 2 (command): docs/exit-codes.md#2-usage"]
    assert "bed-7" not in Directory.open(site).record.identities


def test_a_key_that_came_with_its_request_is_refused_and_so_is_what_is_not_there(site: Path, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN)
    (tmp_path / "both.csr").write_bytes(key + request(tmp_path / "good.csr").read_bytes())
    assert "holds a private key, which must never leave its board" in add(site, tmp_path / "both.csr", expected=2)
    assert "cannot be read: No such file" in add(site, tmp_path / "none.csr", expected=2)
    assert "cannot be read: Is a directory" in add(site, tmp_path, expected=2)


def test_whoever_is_expected_must_ask_and_nobody_else(site: Path, tmp_path: Path) -> None:
    good = request(tmp_path / "good.csr")
    said = add(site, good, expected=2, devices=("bed-8",))
    assert "asks for the name 'bed-7', expected was bed-8" in said
    assert "no request is from bed-8" in add(site, good, expected=2, devices=("bed-7", "bed-8"))
    assert "bed-7: signed until" in add(site, good, devices=("bed-7",))
    told = relief.invoke(app, ["add", str(site), "--fleet", "other", "--csr", str(request(tmp_path / "b.csr", "b"))])
    assert "no fleet other here: there are ward" in told.output


def test_several_requests_are_answered_together_or_not_at_all(site: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    one, copy = request(tmp_path / "1.csr", "one", key), request(tmp_path / "2.csr", "two", key)
    said = add(site, one, copy, expected=2)
    assert "'two' asks with the key of 'one', as a copied card does" in said
    assert not (site / "identities/ward/one").exists()
    same = request(tmp_path / "3.csr", "one")
    assert "two requests are for 'one'" in add(site, one, same, expected=2)
    add(site, one, request(tmp_path / "4.csr", "two"))
    assert {"one", "two"} <= set(Directory.open(site).record.identities)


def test_a_boards_own_key_is_renewed_not_rotated_and_never_comes_back_once_revoked(site: Path, tmp_path: Path) -> None:
    file = request(tmp_path / "good.csr")
    add(site, file)
    cert = site / "identities/ward/bed-7/cert.pem"
    before = x509.load_pem_x509_certificate(cert.read_bytes())
    assert relief.invoke(app, ["renew", str(site), "--days", "9999"]).exit_code == 0
    after = x509.load_pem_x509_certificate(cert.read_bytes())
    assert after.public_key() == before.public_key()
    assert after.serial_number != before.serial_number
    told = relief.invoke(app, ["rotate", str(site), "bed-7"])
    assert told.exit_code == 2
    assert "bed-7 made its own key, so only it can make another" in told.output
    assert relief.invoke(app, ["revoke", str(site), "bed-7"]).exit_code == 0
    assert "'bed-7' asks with a key that was revoked" in add(site, file, expected=2)
    add(site, request(tmp_path / "fresh.csr"))


def test_a_fingerprint_is_of_the_key_alone(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    one, two = (requests.read(request(tmp_path / f"{name}.csr", name, key)) for name in ("a", "b"))
    assert requests.fingerprint(one.key) == requests.fingerprint(two.key)


# -- from the bundle to the broker ------------------------------------------------------------------------------------

AS_A_BOARD = """
set -e
cp -a /etc/. {etc} && mount --bind {etc} /etc && mount -t tmpfs tmpfs /var/lib
"""


@pytest.mark.timeout(120)
def test_a_board_makes_its_key_is_answered_and_speaks_over_mtls(broker: Broker, tmp_path: Path) -> None:
    lacking = [tool for tool in ("openssl", "unshare", "useradd") if shutil.which(tool) is None]
    if os.geteuid() != 0 or lacking:
        pytest.skip(f"the first boot's script runs as root with mounts of its own; not here: {lacking or 'root'}")
    site, port = tmp_path / "site", free_port()
    told = relief.invoke(
        app,
        ["init", str(site), "--fleet", "ward", "--devices", "1", "--port", str(port), "--operator", "jo-status"],
    )
    assert told.exit_code == 0, told.output
    config = tmp_path / "ward.toml"
    config.write_text(
        f'fleet = "ward"\n[broker]\nport = {port}\nidentities = "site/identities/ward"\n[[device]]\nid = "wrist"\n'
        "power = []\n[device.source]\nspeed = inf\npart = [0.0, 0.05]\n"
    )
    etc, base = tmp_path / "etc", tmp_path / "opt"
    base.mkdir()
    for name, content in device_files(config, "wrist", credentials=False).items():
        file = etc / "relief" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    board = ["unshare", "--mount", "--uts", "sh", "-c"]
    enter, environment = AS_A_BOARD.format(etc=etc), {**os.environ, "RELIEF_BASE": str(base), "PYTHONPATH": str(ROOT)}
    script = ROOT / "device_runtime/units/firstboot"
    done = subprocess.run([*board, f"{enter}exec sh {script}"], env=environment, capture_output=True, text=True)
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr:
        pytest.skip(f"no mounts of one's own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    own = etc / "relief/identity"
    group = next(line for line in (etc / "group").read_text().splitlines() if line.startswith("relief:"))
    for file in (own / "key.pem", own / "ca.pem", etc / "relief/device.toml"):
        read = file.stat()
        assert (read.st_mode & 0o777, read.st_gid) == (0o640, int(group.split(":")[2])), f"{file}: not the runtime's"

    add(site, own / "request.csr", devices=("wrist",))
    shutil.copy(site / "identities/ward/wrist/cert.pem", own / "cert.pem")
    with secure(Directory.open(site)):
        identities = BrokerConfig(port=port, identities=site / "identities/ward")
        control = Party(MqttTransport(identities, "coordinator-control"))
        control.transport.subscribe(Topics("ward").device("wrist", "status"))
        run = f"{enter}cd /var/lib; exec {sys.executable} -m tools.cli device run --config /etc/relief/device.toml"
        device = subprocess.Popen([*board, run], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            status = decode(Status, control.until(Received, 60.0).payload)
        except Exception:
            device.kill()
            raise AssertionError(device.communicate()[0]) from None
        finally:
            device.terminate()
            device.communicate(timeout=20)
            control.transport.close()
    assert status.online
