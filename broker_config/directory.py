"""The folder of one broker: its CA, what goes to its host, what goes to every identity, and the record of it all.

DIR/record.json                        who exists, until when, who was revoked
DIR/ca/                                ca.pem, ca.key: stay here
DIR/broker/                            mosquitto.conf, acl, broker.pem and .key, ca.pem, crl.pem: for its host
DIR/identities/FLEET/IDENTITY/         ca.pem, cert.pem, key.pem: for that party alone; no key.pem where a board made it
DIR/SUMMARY.md                         who may do what
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from broker_config import acl, settings
from broker_config.acl import Part, User
from broker_config.names import COMMON_NAME, check_device, check_fleet
from broker_config.pki import Authority, Issued, public_key
from broker_config.requests import Asked, fingerprint
from broker_config.sizing import Sizes, sizes
from protocol.topics import check_name

FORMAT = 1
DEFAULT_MODEL = 250_000  # bytes, where nobody says more


class BadDirectory(ValueError):
    """The folder is not what the command needs; the text says what it is and what to do."""


@dataclass(frozen=True)
class Identity:
    """One certificate's owner. `name` is its common name, `own` its folder and topic level.

    `key` is the fingerprint of a key that its owner made and keeps; empty where we made it.
    """

    name: str
    part: Part
    fleet: str
    own: str
    serial: int
    until: datetime
    key: str = ""

    def user(self, site: Iterable[str] = ()) -> User:
        """As the access list sees it."""
        return User(self.name, self.part, self.fleet, self.own, tuple(site))


@dataclass(frozen=True)
class Revoked:
    """A serial that is not accepted any more, and the key with it if its owner had made it."""

    serial: int
    name: str
    when: datetime
    key: str = ""


@dataclass
class Record:
    """What is written down in record.json."""

    hosts: list[str]
    port: int
    home: str  # where DIR/broker lives on the broker's host
    model_bytes: int = DEFAULT_MODEL
    identities: dict[str, Identity] = field(default_factory=dict)
    revoked: list[Revoked] = field(default_factory=list)
    sites: dict[str, list[str]] = field(default_factory=dict)  # bridge -> its devices
    links: list[settings.Bridge] = field(default_factory=list)  # this broker's own links to a central one

    def of(self, part: Part, fleet: str | None = None) -> list[Identity]:
        """The identities of one kind, sorted by name."""
        found = (one for one in self.identities.values() if one.part is part and fleet in (None, one.fleet))
        return sorted(found, key=lambda one: one.name)

    def fleets(self) -> list[str]:
        """All fleets of this broker."""
        return sorted({one.fleet for one in self.identities.values()})


class Directory:
    """A broker's folder, opened. Changes are written by `save`, certificates as they are issued."""

    def __init__(self, path: Path, record: Record, authority: Authority) -> None:
        self.path, self.record, self._authority = path, record, authority

    @classmethod
    def create(cls, path: Path, *, hosts: list[str], port: int, home: Path | None, model_bytes: int) -> Directory:
        """A new one with a CA of its own. BadDirectory where there is anything already."""
        if (path / "ca").exists():
            raise BadDirectory(f"{path} holds a CA already, which is never overwritten: choose another folder")
        if path.exists() and any(path.iterdir()):
            raise BadDirectory(f"{path} is not empty: choose a new folder")
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (path / "identities").mkdir(mode=0o700)
        record = Record(hosts=hosts, port=port, home=str(home or (path / "broker").absolute()), model_bytes=model_bytes)
        made = cls(path, record, Authority.create(f"relief broker CA {path.name[:40]}"))
        write(path / "ca" / "ca.key", made._authority.key, secret=True)
        write(path / "ca" / "ca.pem", made._authority.cert)
        made.renew_broker()
        return made

    @classmethod
    def open(cls, path: Path) -> Directory:
        """One that `create` made. BadDirectory otherwise."""
        try:
            plain = json.loads((path / "record.json").read_text())
            return cls(path, _record(plain), Authority.load(path / "ca"))
        except FileNotFoundError as error:
            raise BadDirectory(
                f"{path} is no broker's folder ({error.filename} is missing): make one with `relief broker init {path}`"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadDirectory(f"{path} cannot be read ({error}): restore record.json and ca/ from a copy") from None

    # -- identities ----------------------------------------------------------------------------------------------

    def add_fleet(self, fleet: str) -> None:
        """The coordinator's two identities of a new fleet."""
        check_fleet(fleet)
        for part in (Part.CONTROL, Part.BULK):
            self._add(f"{fleet}.{part.value}", part, fleet, part.value)

    def add_device(self, fleet: str, name: str) -> None:
        """A device; its name is unique at this broker."""
        self._add(check_device(name), Part.DEVICE, fleet, name)

    def answer(self, fleet: str, asked: Sequence[Asked]) -> list[Identity]:
        """Sign boards' requests: devices that keep their own keys. All or none.

        BadDirectory for a name that exists, and for a key that another has or that was revoked.
        """
        again = "remove key.pem from /etc/relief/identity and run /opt/relief/firstboot there for a new request"
        owners = {one.key: one.name for one in self.record.identities.values() if one.key}
        lost = {one.key for one in self.record.revoked if one.key}
        names: set[str] = set()
        for one in asked:
            name, key = one.device, fingerprint(one.key)
            if name in self.record.identities:
                there = self.record.identities[name].fleet
                todo = f"`relief broker revoke {self.path} {name}` first, if this board is to have the name"
                raise BadDirectory(f"{name!r} exists already in fleet {there!r}: {todo}")
            if name in names:
                raise BadDirectory(f"two requests are for {name!r}: give one of them")
            if key in lost:
                raise BadDirectory(f"{name!r} asks with a key that was revoked: {again}")
            if key in owners:
                raise BadDirectory(f"{name!r} asks with the key of {owners[key]!r}, as a copied card does: {again}")
            names.add(name)
            owners[key] = name
        now = datetime.now(timezone.utc)
        return [
            self._keep(
                Identity(one.device, Part.DEVICE, fleet, one.device, 0, now, fingerprint(one.key)),
                self._authority.client(one.device, key=one.key),
            )
            for one in asked
        ]

    def add_operator(self, fleet: str, person: str, tool: str) -> None:
        """A person's tool. One identity a tool: two on one certificate would kick each other for ever."""
        name = f"operator-{check_name(person, 'operator')}-{check_name(tool, 'tool')}"
        self._add(name, Part.OPERATOR, fleet, name)

    def add_bridge(self, fleet: str, site: str, devices: list[str]) -> None:
        """Another broker that speaks for `devices` here."""
        name = f"bridge-{check_name(site, 'site')}"
        self.record.sites[name] = [check_device(device) for device in devices]
        self._add(name, Part.BRIDGE, fleet, name)

    def folder(self, identity: Identity) -> Path:
        """Where an identity's files are."""
        return self.path / "identities" / identity.fleet / identity.own

    def find(self, name: str) -> Identity:
        """An identity by its common name, or a coordinator's by its short one where there is one fleet."""
        found = [one for one in self.record.identities.values() if name in (one.name, one.own)]
        if len(found) != 1:
            known = ", ".join(sorted(self.record.identities)[:8])
            raise BadDirectory(f"{self.path} knows {len(found)} identities called {name!r}; there are: {known}, ...")
        return found[0]

    def issue(self, identity: Identity) -> Identity:
        """A new certificate for an identity, for a new key or for the one that its owner keeps.

        The old one stays valid until it ends or is revoked.
        """
        own = None
        if identity.key:
            try:
                own = public_key(self.folder(identity) / "cert.pem")
            except (OSError, ValueError) as error:
                raise BadDirectory(
                    f"{identity.name} keeps its own key, and its certificate here cannot be read ({error}): "
                    "restore it from a copy, or revoke it and have the board make a new request"
                ) from None
        return self._keep(identity, self._authority.client(identity.name, key=own))

    def passing(self, name: str) -> Issued:
        """A certificate that is used once and kept nowhere (an hour)."""
        return self._authority.client(name, until=datetime.now(timezone.utc) + timedelta(hours=1))

    def revoke(self, identity: Identity, *, forget: bool) -> None:
        """Put the certificate on the list of revoked ones; `forget` takes its rights and files as well."""
        now = datetime.now(timezone.utc).replace(microsecond=0)
        self.record.revoked.append(Revoked(identity.serial, identity.name, now, identity.key))
        if forget:
            del self.record.identities[identity.name]
            shutil.rmtree(self.folder(identity), ignore_errors=True)

    def renew_broker(self) -> None:
        """A new certificate for the broker itself."""
        issued = self._authority.server(self.record.hosts)
        write(self.path / "broker" / "broker.key", issued.key, secret=True)
        write(self.path / "broker" / "broker.pem", issued.cert)

    # -- what is made from it --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the record and everything made from it; each file is replaced whole."""
        broker, record = self.path / "broker", self.record
        write(self.path / "record.json", json.dumps(_plain(record), indent=1).encode())
        write(broker / "ca.pem", self._authority.cert)
        write(broker / "crl.pem", self._authority.crl((one.serial, one.when) for one in record.revoked))
        self.write_acl()
        write(broker / "mosquitto.conf", self.configuration(record.port, Path(record.home)).encode())
        (broker / "data").mkdir(exist_ok=True, mode=0o700)
        write(self.path / "SUMMARY.md", self.summary().encode())
        self._give_to_mosquitto()

    def write_acl(self, *more: str) -> None:
        """The access list, with `more` text at its end."""
        write(self.path / "broker" / "acl", (acl.text(self.users()) + "".join(more)).encode(), secret=True)

    def users(self) -> list[User]:
        """Everybody who may do something."""
        return [one.user(self.record.sites.get(one.name, ())) for one in self.record.identities.values()]

    def configuration(self, port: int, home: Path, *, address: str = "", user: str | None = None) -> str:
        """mosquitto.conf of this broker, its files at `home`."""
        text = settings.site(port, home, self.sizes(), address=address, user=user)
        return text + "".join(settings.bridge(link, home) for link in self.record.links)

    def sizes(self) -> Sizes:
        """Queue limits for the devices there are, a bridge's included."""
        behind = {device for site in self.record.sites.values() for device in site}
        return sizes(max(1, len(self.record.of(Part.DEVICE)) + len(behind)), self.record.model_bytes)

    def runs_as(self) -> str | None:
        """Whom Mosquitto becomes when root starts it from here: its own user if that one can reach the files."""
        if os.geteuid() != 0:
            return None
        reachable = all(parent.stat().st_mode & 0o001 for parent in (self.path / "broker").absolute().parents)
        return "mosquitto" if _mosquittos_ids() and reachable else "root"

    def _give_to_mosquitto(self) -> None:
        """As root: the broker's files belong to its user, who may pass through DIR but not look into it."""
        ids = _mosquittos_ids()
        if os.geteuid() == 0 and ids is not None:
            self.path.chmod(0o711)
            broker = self.path / "broker"
            for path in (broker, *broker.rglob("*")):
                os.chown(path, *ids)

    def summary(self) -> str:
        """Who may do what, for people."""
        record = self.record
        lines = ["# Who may do what\n", f"Broker on port {record.port} as {', '.join(record.hosts)}.\n"]
        for fleet in record.fleets():
            counts = [f"{len(record.of(part, fleet))} {part.value}" for part in Part if record.of(part, fleet)]
            lines.append(f"- fleet `{fleet}`: {', '.join(counts)}")
        lines += ["", acl.summary(), "Queue limits of one client:\n"]
        lines += [f"- {line}" for line in self.sizes().said]
        return "\n".join(lines) + "\n"

    def _add(self, name: str, part: Part, fleet: str, own: str) -> None:
        if name in self.record.identities:
            there = self.record.identities[name].fleet
            raise BadDirectory(f"{name!r} exists already in fleet {there!r}: names are unique at one broker")
        if len(name.encode()) > COMMON_NAME:
            raise BadDirectory(f"{name!r} is longer than the {COMMON_NAME} bytes a certificate takes")
        self.issue(Identity(name, part, fleet, own, 0, datetime.now(timezone.utc)))

    def _keep(self, identity: Identity, issued: Issued) -> Identity:
        """Write the files that its owner gets, and remember it."""
        folder = self.folder(identity)
        if issued.key:
            write(folder / "key.pem", issued.key, secret=True)
        write(folder / "cert.pem", issued.cert)
        write(folder / "ca.pem", self._authority.cert)
        now = replace(identity, serial=issued.serial, until=issued.until)
        self.record.identities[identity.name] = now
        return now


def write(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Replace a file as a whole; a secret one is readable by its owner alone from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "wb") as out:
        out.write(content)
        os.fchmod(out.fileno(), 0o600 if secret else 0o644)
    if path.exists() and os.geteuid() == 0:
        before = path.stat()
        os.chown(name, before.st_uid, before.st_gid)  # Mosquitto's user keeps what was given to it
    Path(name).replace(path)


def _mosquittos_ids() -> tuple[int, int] | None:
    try:
        entry = pwd.getpwnam("mosquitto")
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _plain(record: Record) -> dict[str, Any]:
    return {"format": FORMAT, **json.loads(json.dumps(asdict(record), default=datetime.isoformat))}


def _record(plain: dict[str, Any]) -> Record:
    if plain.pop("format") != FORMAT:
        raise ValueError("record.json was written by a newer version")
    when = datetime.fromisoformat
    return Record(
        **{
            **plain,
            "identities": {
                name: Identity(**{**one, "part": Part(one["part"]), "until": when(one["until"])})
                for name, one in plain["identities"].items()
            },
            "revoked": [Revoked(**{**one, "when": when(one["when"])}) for one in plain["revoked"]],
            "links": [settings.Bridge(**{**one, "site": tuple(one["site"])}) for one in plain["links"]],
        }
    )
