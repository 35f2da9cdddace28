"""A board's signing request, looked at before its key is trusted: it may ask for its own name and for nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from broker_config.names import check_device
from broker_config.pki import PublicKey

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.x509.oid import NameOID
except ImportError as missing:  # pragma: no cover
    raise ImportError("certificates need an extra: pip install 'relief-edge[broker]'") from missing

LARGEST = 1 << 16  # bytes; a request takes a few hundred
RSA_BITS = (2048, 4096)  # the weakest that is safe, the largest that a handshake on a small board can bear
CURVES = (ec.SECP256R1, ec.SECP384R1)
HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class BadRequest(ValueError):
    """A signing request that is not answered; the text says which file and why."""

    def __init__(self, where: Path, problem: str) -> None:
        super().__init__(f"{where}: {problem}")


@dataclass(frozen=True)
class Asked:
    """What a good request holds: a device's name and the public half of the key that the board keeps."""

    device: str
    key: PublicKey


def read(path: Path) -> Asked:
    """The request in `path`, PEM. BadRequest for whatever is not a name and a key, signed by that key."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise BadRequest(path, f"cannot be read: {error.strerror}") from None
    if len(text) > LARGEST:
        raise BadRequest(path, f"is larger than {LARGEST >> 10} KiB, which no signing request is")
    if b"PRIVATE KEY" in text:
        raise BadRequest(path, "holds a private key, which must never leave its board: have it make another")
    if text.count(b"-----BEGIN") > 1:
        raise BadRequest(path, "holds more than one request: give each a file of its own")
    try:
        return _asked(path, x509.load_pem_x509_csr(text))
    except BadRequest:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.DuplicateExtension) as error:
        raise BadRequest(path, f"is no signing request in PEM ({_first_line(error)})") from None


def fingerprint(key: PublicKey) -> str:
    """SHA-256 of a public key, hexadecimal."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _asked(path: Path, request: x509.CertificateSigningRequest) -> Asked:
    if not isinstance(request.signature_hash_algorithm, HASHES):
        told = request.signature_hash_algorithm
        raise BadRequest(path, f"is signed with {told.name if told else 'no hash'}: SHA-256, -384 or -512 are taken")
    if not request.is_signature_valid:
        raise BadRequest(path, "its signature is not of the key that it holds: it was changed on its way")
    key = _strong(path, request.public_key())
    subject = list(request.subject)
    names = [one for one in subject if one.oid == NameOID.COMMON_NAME]
    if len(names) != 1 or len(subject) != 1:
        raise BadRequest(path, f"is for {request.subject.rfc4514_string()!r}: the device's name as CN, alone, is taken")
    name = names[0].value
    try:
        device = check_device(name if isinstance(name, str) else "")
    except ValueError as error:
        raise BadRequest(path, str(error)) from None
    more = [one.oid._name for one in request.extensions]
    if not more:
        more = [f"attribute {one.oid.dotted_string}" for one in request.attributes if one.value]
    if more:
        raise BadRequest(path, f"asks for {', '.join(more)}: a request holds a name and a key, nothing else")
    return Asked(device, key)


def _strong(path: Path, key: object) -> PublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, CURVES):
            return key
        raise BadRequest(path, f"its key is of curve {key.curve.name}: P-256 or P-384 are taken")
    if isinstance(key, rsa.RSAPublicKey):
        least, most = RSA_BITS
        if not least <= key.key_size <= most:
            raise BadRequest(path, f"its RSA key has {key.key_size} bits: {least} to {most} are taken")
        if key.public_numbers().e != 65537:
            raise BadRequest(path, f"its RSA key has the exponent {key.public_numbers().e}: 65537 is taken")
        return key
    kind = type(key).__name__.strip("_").removesuffix("PublicKey")
    raise BadRequest(path, f"its key is of kind {kind}: EC P-256, P-384 or RSA are taken")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
