"""What can be wrong with a broker's folder, one small check each: found in its files, without asking the broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from broker_config import acl, pki
from broker_config.directory import Directory
from broker_config.mosquitto import find

SOON = timedelta(days=30)


@dataclass(frozen=True)
class Finding:
    """One result; `ok` None is a warning. `todo` says what to run."""

    check: str
    ok: bool | None
    told: str
    todo: str = ""


Check = Callable[[Directory], Iterator[Finding]]


def inspect(directory: Directory) -> list[Finding]:
    """All findings about the files."""
    return [finding for check in CHECKS for finding in check(directory)]


def dates(directory: Directory) -> Iterator[Finding]:
    """No certificate and no list has ended or ends soon."""
    broker, renew = directory.path / "broker", f"relief broker renew {directory.path}"
    files = {"the broker's certificate": broker / "broker.pem", "the CRL": broker / "crl.pem"}
    files |= {one.name: directory.folder(one) / "cert.pem" for one in directory.record.identities.values()}
    now, bad = datetime.now(timezone.utc), False
    for whose, file in files.items():
        try:
            until = pki.valid_until(file)
        except (OSError, ValueError) as error:
            bad = True
            yield Finding("dates", False, f"{whose}: {file} cannot be read ({error})", renew)
            continue
        if until < now + SOON:
            bad = True
            text = f"ended {until:%Y-%m-%d %H:%M} UTC" if until < now else f"ends in {(until - now).days} days"
            yield Finding("dates", False if until < now else None, f"{whose} {text}", renew)
    if not bad:
        yield Finding("dates", True, f"{len(files)} certificates and lists are in date for {SOON.days} days or more")


def keys(directory: Directory) -> Iterator[Finding]:
    """No private key is open to others."""
    loose = [
        path
        for path in (*directory.path.rglob("*.key"), *directory.path.rglob("key.pem"))
        if path.stat().st_mode
        & (0o007 if path.name == "broker.key" else 0o077)  # the broker's group may be Mosquitto's
    ]
    for path in loose:
        yield Finding("keys", False, f"{path} may be read by others", f"chmod 600 {path}")
    if not loose:
        yield Finding("keys", True, "every private key is its owner's alone")


def chain(directory: Directory) -> Iterator[Finding]:
    """Everything is signed by this folder's CA."""
    ca = directory.path / "ca" / "ca.pem"
    certs = [directory.path / "broker" / "broker.pem"]
    certs += [directory.folder(one) / "cert.pem" for one in directory.record.identities.values()]
    strange = [path for path in certs if path.is_file() and not pki.signed_by(path, ca)]
    for path in strange:
        yield Finding("chain", False, f"{path} is not of the CA in {ca}", "restore it, or `relief broker rotate`")
    if not strange:
        yield Finding("chain", True, "every certificate is of this folder's CA")


def drift(directory: Directory) -> Iterator[Finding]:
    """What lies in DIR/broker is what the record makes."""
    record = directory.record
    wanted = {
        "acl": acl.text(directory.users()),
        "mosquitto.conf": directory.configuration(record.port, Path(record.home)),
    }
    for name, text in wanted.items():
        file = directory.path / "broker" / name
        if not file.is_file():
            yield Finding("drift", False, f"{file} is missing", f"relief broker renew {directory.path}")
        elif _own_lines(file.read_text()) != _own_lines(text):
            yield Finding("drift", None, f"{file} was changed by hand", f"relief broker renew {directory.path}")
        else:
            yield Finding("drift", True, f"{name} is as the topic table and the record make it")


def program(directory: Directory) -> Iterator[Finding]:
    """A Mosquitto that knows these settings is here."""
    found = find()
    if found is None:
        yield Finding(
            "mosquitto", None, "no Mosquitto on this machine", "apt-get install mosquitto, or run it elsewhere"
        )
        return
    version = found.version()
    told = f"{found.program}, version {'.'.join(map(str, version))}"
    yield Finding("mosquitto", version >= (2, 0), told, "" if version >= (2, 0) else "use 2.0 or newer")


def _own_lines(text: str) -> list[str]:
    # `up` adds whom to become and where to listen.
    return [line for line in text.splitlines() if not line.startswith(("user ", "listener ", "#")) and line]


CHECKS: tuple[Check, ...] = (dates, keys, chain, drift, program)
