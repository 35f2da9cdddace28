"""Every identity against every topic at a real Mosquitto, compared with the topic table. `make acl-matrix`.

Identities: coordinator control and bulk, operator, devices A and B, a revoked device, a device and a coordinator of
another fleet; and three that must not get in at all: no certificate, another CA's, an expired one.
Actions: publish, subscribe and receive (every topic under every filter), retain and clear, will.
The expectation is computed from the table alone, topic by topic, without the code that writes the access list.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from broker_config.directory import Directory, write
from broker_config.pki import Authority
from protocol.topics import ROOT, TABLE, Role, matches
from tests.raw_client import RawClient, context, free_port
from tools.broker import secure

FLEET, OTHER = "ward", "annexe"
WITNESS, OBSERVER = "witness", "observer"  # they may do everything, so that what others did can be seen
SETTLE = 0.25  # seconds of silence after which no will is on its way any more


@dataclass(frozen=True)
class Who:
    """One identity: its role in the table, or None where it may do nothing."""

    name: str
    role: Role | None
    fleet: str
    own: str
    bulk: bool = False


@dataclass(frozen=True)
class Topic:
    """One instance of a leaf."""

    text: str
    leaf: int
    fleet: str
    own: str  # the device or operator it belongs to


PEOPLE = (
    Who(f"{FLEET}.coordinator-control", Role.COORDINATOR, FLEET, ""),
    Who(f"{FLEET}.coordinator-bulk", Role.COORDINATOR, FLEET, "", bulk=True),
    Who("operator-jo-cli", Role.OPERATOR, FLEET, "operator-jo-cli"),
    Who("A", Role.DEVICE, FLEET, "A"),
    Who("B", Role.DEVICE, FLEET, "B"),
    Who("revoked", None, FLEET, "revoked"),
    Who("X", Role.DEVICE, OTHER, "X"),
    Who(f"{OTHER}.coordinator-control", Role.COORDINATOR, OTHER, ""),
)
STRANGERS = ("no certificate", "another CA's", "an expired one", "a revoked one")


def allowed(who: Who, topic: Topic, *, write: bool) -> bool:
    """What the table says, by itself."""
    leaf = TABLE[topic.leaf]
    if who.role is None or who.fleet != topic.fleet:
        return False
    if write and leaf.writer is not who.role:
        return False
    if not write and who.role not in leaf.readers:
        return False
    if who.role is Role.COORDINATOR:
        return leaf.bulk == who.bulk
    belongs = "{id}" in leaf.path if who.role is Role.DEVICE else "{op}" in leaf.path
    return not belongs or topic.own == who.own


def topics() -> list[Topic]:
    """Every leaf of the table, for every device and operator, in both fleets, and some that are no leaf."""
    found = []
    for fleet, devices in ((FLEET, ("A", "B", "revoked")), (OTHER, ("X",))):
        for n, leaf in enumerate(TABLE):
            owners = (
                devices
                if "{id}" in leaf.path
                else ("operator-jo-cli", "operator-al-gui")
                if "{op}" in leaf.path
                else ("",)
            )
            for own in owners:
                path = leaf.path.replace("{id}", own).replace("{op}", own).replace("{block}", "acc").replace("{k}", "0")
                found.append(Topic(f"{ROOT}/{fleet}/{path}", n, fleet, own))
    return found


def filters() -> list[str]:
    """Every leaf's wildcard form, and the greedy ones somebody would try."""
    found = {
        f"{ROOT}/{FLEET}/"
        + leaf.path.replace("{id}", "+").replace("{op}", "+").replace("{block}", "+").replace("{k}", "+")
        for leaf in TABLE
    }
    found |= {
        f"{ROOT}/+/device/A/assignment",
        f"{ROOT}/{FLEET}/device/#",
        f"{ROOT}/{FLEET}/#",
        f"{ROOT}/#",
        "#",
        "+/+/+/+/+/+",
        "+/#",
    }
    return sorted(found)


@dataclass
class Matrix:
    """The running comparison."""

    port: int
    directory: Directory
    witnesses: Path
    topics: list[Topic]
    cells: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def ca(self) -> Path:
        """The CA's certificate."""
        return self.directory.path / "ca" / "ca.pem"

    def expect(self, who: str, action: str, topic: str, is_allowed: bool, happened: bool) -> None:
        """One cell."""
        self.cells += 1
        if is_allowed != happened:
            said = "may" if is_allowed else "may not"
            self.differences.append(
                f"{who} {said} {action} {topic}, and the broker {'let it' if happened else 'refused'}"
            )

    def client(self, who: Who, will: tuple[str, bytes, bool] | None = None, name: str = "any") -> RawClient:
        """A client on this identity's certificate, whatever client id it claims."""
        folder = self.directory.path / "identities" / who.fleet / (who.own or who.name.partition(".")[2])
        return RawClient(self.port, context(folder, self.ca), name, will)


def run(folder: Path, *more: str, people: tuple[Who, ...] = PEOPLE, extra: Sequence[Topic] = ()) -> Matrix:
    """The matrix in a fresh directory at a fresh broker; `more` goes to the access list, `extra` to the topics."""
    directory, outsiders = _prepare(folder)
    directory.write_acl(*(f"\nuser {name}\ntopic readwrite #\n" for name in (WITNESS, OBSERVER)), *more)
    with secure(directory, free_port()) as broker:
        matrix = Matrix(broker.port, directory, folder, [*topics(), *extra])
        witness = RawClient(broker.port, context(folder / WITNESS, matrix.ca), WITNESS)
        assert witness.connect(), witness.refused
        witness.subscribe(f"{ROOT}/#")
        _strangers(matrix, outsiders)
        for who in people:
            if who.role is None:
                _hand_a_valid_certificate_to(matrix, who)
            for act in (_publishes, _receives, _retains, _wills):
                act(matrix, who, witness)
        witness.close()
    return matrix


def _prepare(folder: Path) -> tuple[Directory, dict[str, Path | None]]:
    directory = Directory.create(
        folder / "site", hosts=["localhost", "127.0.0.1"], port=8883, home=None, model_bytes=100_000
    )
    for fleet, devices in ((FLEET, ("A", "B", "revoked")), (OTHER, ("X",))):
        directory.add_fleet(fleet)
        for device in devices:
            directory.add_device(fleet, device)
    directory.add_operator(FLEET, "jo", "cli")
    authority = Authority.load(directory.path / "ca")
    outsiders: dict[str, Path | None] = {"no certificate": None}
    past = datetime.now(timezone.utc) - timedelta(days=1)
    issued = {
        WITNESS: authority.client(WITNESS),
        OBSERVER: authority.client(OBSERVER),
        "another CA's": Authority.create("somebody else").client("A"),
        "an expired one": authority.client("A", since=past - timedelta(days=9), until=past),
    }
    for name, one in issued.items():
        write(folder / name / "cert.pem", one.cert)
        write(folder / name / "key.pem", one.key, secret=True)
        outsiders[name] = folder / name
    del outsiders[WITNESS], outsiders[OBSERVER]
    revoked = directory.find("revoked")
    stolen = folder / "a revoked one"
    stolen.mkdir()
    for name in ("cert.pem", "key.pem"):
        (stolen / name).write_bytes((directory.folder(revoked) / name).read_bytes())
    outsiders["a revoked one"] = stolen
    directory.revoke(revoked, forget=True)
    directory.save()
    return directory, outsiders


def _strangers(matrix: Matrix, outsiders: dict[str, Path | None]) -> None:
    """Whoever has no valid certificate does not get in, so every cell of theirs is refused."""
    for name in STRANGERS:
        client = RawClient(matrix.port, context(outsiders[name], matrix.ca), "A")
        inside = client.connect(2.0)
        client.crash()
        for action in ("connect and publish on", "receive", "retain", "leave a will on"):
            for topic in matrix.topics:
                matrix.expect(name, action, topic.text, False, inside)


def _publishes(matrix: Matrix, who: Who, witness: RawClient) -> None:
    client = matrix.client(who)
    assert client.connect(), client.refused
    witness.arrived.clear()
    sent = {topic: client.publish(topic.text, f"by {who.name}".encode()) for topic in matrix.topics}
    assert client.settled(list(sent.values()))
    witness.round_trip()
    seen = {topic for topic, payload, _ in witness.arrived if payload == f"by {who.name}".encode()}
    for topic, mid in sent.items():
        may = allowed(who, topic, write=True)
        matrix.expect(who.name, "publish on", topic.text, may, topic.text in seen)
        matrix.expect(who.name, "be told it published on", topic.text, may, client.answers[mid] != 135)
    client.close()


def _receives(matrix: Matrix, who: Who, witness: RawClient) -> None:
    client = matrix.client(who)
    assert client.connect(), client.refused
    for wanted in filters() + [topic.text for topic in matrix.topics]:
        client.arrived.clear()
        client.subscribe(wanted)
        mids = [witness.publish(topic.text, b"secret") for topic in matrix.topics if matches(wanted, topic.text)]
        assert witness.settled(mids)
        client.unsubscribe(wanted)  # its answer comes after all that was on its way
        seen = {topic for topic, _, _ in client.arrived}
        for topic in matrix.topics:
            may = allowed(who, topic, write=False) and matches(wanted, topic.text)
            matrix.expect(who.name, f"receive by {wanted}", topic.text, may, topic.text in seen)
    client.close()


def _retains(matrix: Matrix, who: Who, witness: RawClient) -> None:
    """Clear what is retained, and put something in its place."""
    mids = [witness.publish(topic.text, b"state", retain=True) for topic in matrix.topics]
    assert witness.settled(mids)
    client = matrix.client(who)
    assert client.connect(), client.refused
    assert client.settled([client.publish(topic.text, b"", retain=True) for topic in matrix.topics])
    left = _retained(matrix)
    assert client.settled([client.publish(topic.text, b"mine", retain=True) for topic in matrix.topics])
    placed = _retained(matrix)
    client.close()
    for topic in matrix.topics:
        may = allowed(who, topic, write=True)
        matrix.expect(who.name, "clear", topic.text, may, topic.text not in left)
        matrix.expect(who.name, "retain", topic.text, may, placed.get(topic.text) == b"mine")
    assert witness.settled([witness.publish(topic.text, b"", retain=True) for topic in matrix.topics])


def _wills(matrix: Matrix, who: Who, witness: RawClient) -> None:
    witness.arrived.clear()
    payload = f"will of {who.name}".encode()
    connected = {}
    for topic in matrix.topics:
        client = matrix.client(who, (topic.text, payload, True))
        connected[topic] = client.connect(2.0)
        client.crash()
    _quiet(witness)
    seen = {topic for topic, content, _ in witness.arrived if content == payload}
    for topic in matrix.topics:
        matrix.expect(who.name, "leave a will on", topic.text, allowed(who, topic, write=True), topic.text in seen)
    assert witness.settled([witness.publish(topic.text, b"", retain=True) for topic in matrix.topics])


def _hand_a_valid_certificate_to(matrix: Matrix, who: Who) -> None:
    """A revoked name has no rights left even if the revocation list fails: the access list is without it."""
    issued = matrix.directory.passing(who.own)
    folder = matrix.directory.path / "identities" / who.fleet / who.own
    write(folder / "cert.pem", issued.cert)
    write(folder / "key.pem", issued.key, secret=True)


def _retained(matrix: Matrix) -> dict[str, bytes]:
    observer = RawClient(matrix.port, context(matrix.witnesses / OBSERVER, matrix.ca), OBSERVER)
    assert observer.connect(), observer.refused
    observer.subscribe(f"{ROOT}/#")
    observer.round_trip()
    observer.close()
    return {topic: payload for topic, payload, retained in observer.arrived if retained}


def _quiet(client: RawClient) -> None:
    before = -1
    while before != len(client.arrived):
        before = len(client.arrived)
        time.sleep(SETTLE)


def main() -> int:
    """Run it, print every difference, and the verdict on the last line."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="relief-acl-") as folder:
        matrix = run(Path(folder))
    for difference in matrix.differences:
        print(difference)
    identities = len(PEOPLE) + len(STRANGERS)
    print(
        f"ACL matrix: {identities} identities x {len(topics())} topics x {len(filters())} filters and 4 actions, "
        f"{matrix.cells:,} cells in {time.monotonic() - began:.0f} s: {len(matrix.differences)} differences"
    )
    return 1 if matrix.differences else 0


if __name__ == "__main__":
    sys.exit(main())
