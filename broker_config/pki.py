"""The private CA of one broker: certificates and the list of revoked ones, EC P-256 throughout."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TypeAlias

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as missing:  # pragma: no cover
    raise ImportError("certificates need an extra: pip install 'relief-edge[broker]'") from missing

PublicKey: TypeAlias = "ec.EllipticCurvePublicKey | rsa.RSAPublicKey"

CA_DAYS = 3650
BROKER_DAYS = 397  # what common verifiers accept of a server
CLIENT_DAYS = 730
CRL_DAYS = 400  # an expired list locks everybody out, so it outlives a year between two visits
LEEWAY = timedelta(hours=1)  # boards without a clock battery start in the past


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, PEM; no key where it is the owner's own."""

    cert: bytes
    key: bytes
    serial: int
    until: datetime


class Authority:
    """Signs for one broker. Its key signs nothing else and never leaves its folder."""

    def __init__(self, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._cert, self._key = cert, key

    @classmethod
    def create(cls, name: str) -> Authority:
        """A new CA called `name`."""
        key, now = ec.generate_private_key(ec.SECP256R1()), _now()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        cert = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - LEEWAY)
            .not_valid_after(now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(cert, key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The CA kept in `folder` (ca.pem, ca.key)."""
        cert = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{folder / 'ca.key'} is no EC key")
        return cls(cert, key)

    @property
    def cert(self) -> bytes:
        """The CA's certificate, PEM."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> bytes:
        """The CA's private key, PEM."""
        return _key_bytes(self._key)

    def client(
        self, name: str, *, since: datetime | None = None, until: datetime | None = None, key: PublicKey | None = None
    ) -> Issued:
        """A certificate for the identity `name`; for the public `key` of its owner, or with a new key."""
        until = until or _now() + timedelta(days=CLIENT_DAYS)
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, (), since, until, key)

    def server(self, hosts: Sequence[str], *, until: datetime | None = None) -> Issued:
        """The broker's certificate, for all names and addresses it is reached by."""
        until = until or _now() + timedelta(days=BROKER_DAYS)
        return self._issue("broker", ExtendedKeyUsageOID.SERVER_AUTH, [_host(host) for host in hosts], None, until)

    def crl(self, revoked: Iterable[tuple[int, datetime]], *, until: datetime | None = None) -> bytes:
        """The list of revoked serials, PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._cert.subject)
            .last_update(_now() - LEEWAY)
            .next_update(until or _now() + timedelta(days=CRL_DAYS))
        )
        for serial, when in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        name: str,
        usage: x509.ObjectIdentifier,
        hosts: Sequence[x509.GeneralName],
        since: datetime | None,
        until: datetime,
        theirs: PublicKey | None = None,
    ) -> Issued:
        ours = ec.generate_private_key(ec.SECP256R1())
        public = theirs or ours.public_key()
        until = min(until, self._cert.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._cert.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(since or min(_now() - LEEWAY, until - timedelta(seconds=1)))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        cert = builder.sign(self._key, hashes.SHA256())
        secret = b"" if theirs else _key_bytes(ours)
        return Issued(cert.public_bytes(serialization.Encoding.PEM), secret, cert.serial_number, until)


def valid_until(path: Path) -> datetime:
    """When a certificate or a list of revoked ones ends."""
    text = path.read_bytes()
    if b"X509 CRL" in text:
        until = x509.load_pem_x509_crl(text).next_update_utc
        if until is None:
            raise ValueError(f"{path} says no date of its next update")
        return until
    return x509.load_pem_x509_certificate(text).not_valid_after_utc


def public_key(path: Path) -> PublicKey:
    """The key that the certificate in `path` is for. ValueError if it is none that we sign."""
    key = x509.load_pem_x509_certificate(path.read_bytes()).public_key()
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        raise ValueError(f"{path} is for a key of another kind")
    return key


def signed_by(path: Path, ca: Path) -> bool:
    """Whether the certificate in `path` is of the CA in `ca`."""
    try:
        cert = x509.load_pem_x509_certificate(path.read_bytes())
        cert.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.read_bytes()))
    except Exception:  # every way of not fitting has a type of its own
        return False
    return True


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
