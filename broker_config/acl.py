"""Who may do what, made from the topic table: role x leaf x direction, with fleet and device written out.

No patterns: `%u` applies to every user of the broker, so an operator called like a device would speak for it, and a `+`
for the fleet would let a device write into another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from protocol.topics import ROOT, TABLE, Leaf, Role


class Access(str, Enum):
    """What a rule allows; the words are Mosquitto's."""

    READ = "read"
    WRITE = "write"
    BOTH = "readwrite"


class Part(str, Enum):
    """What an identity is; the coordinator's two connections differ in what they may."""

    CONTROL = "coordinator-control"
    BULK = "coordinator-bulk"
    DEVICE = "device"
    OPERATOR = "operator"
    BRIDGE = "bridge"

    @property
    def role(self) -> Role:
        """Its column of the topic table."""
        if self in (Part.CONTROL, Part.BULK):
            return Role.COORDINATOR
        return Role(self.value)


@dataclass(frozen=True)
class User:
    """One identity at the broker: its common name there, what it is, in which fleet, and its own topic level."""

    name: str
    part: Part
    fleet: str
    own: str
    site: tuple[str, ...] = ()  # a bridge's devices


Rule = tuple[Access, str]


def rules(user: User) -> list[Rule]:
    """What `user` may read and write, as filters."""
    if user.part is Part.BRIDGE:
        return _bridge(user)
    allowed = []
    for leaf in TABLE:
        access = _access(leaf, user.part)
        if access is not None:
            allowed.append((access, topic(leaf, user.fleet, user.part, user.own)))
    if user.part in (Part.CONTROL, Part.OPERATOR):
        allowed.append((Access.READ, "$SYS/#"))
    return allowed


def topic(leaf: Leaf, fleet: str, part: Part, own: str) -> str:
    """The leaf as a filter for one identity: its own level where the leaf has one for it, `+` elsewhere."""
    path = leaf.path.replace("{block}", "+").replace("{k}", "+")
    path = path.replace("{id}", own if part is Part.DEVICE else "+")
    path = path.replace("{op}", own if part is Part.OPERATOR else "+")
    return f"{ROOT}/{fleet}/{path}"


def text(users: Iterable[User]) -> str:
    """The ACL file. Whoever is not in it may do nothing."""
    parts = ["# Made from the topic table by `relief broker`; changes here are lost at the next change of the fleet.\n"]
    for user in users:
        lines = [f"topic {access.value} {where}\n" for access, where in rules(user)]
        parts.append(f"\n# {user.part.value} of fleet {user.fleet}\nuser {user.name}\n{''.join(lines)}")
    return "".join(parts)


def summary() -> str:
    """The rights of all parts as a Markdown table: a row a leaf, a column a part."""
    parts = [part for part in Part if part is not Part.BRIDGE]
    rows = [
        "| below the fleet | " + " | ".join(part.value for part in parts) + " | |",
        "|---" * (len(parts) + 2) + "|",
    ]
    for leaf in TABLE:
        cells = []
        for part in parts:
            access = _access(leaf, part)
            own = access and (
                ("{id}" in leaf.path and part is Part.DEVICE) or ("{op}" in leaf.path and part is Part.OPERATOR)
            )
            cells.append((access.value + (" its own" if own else "")) if access else "-")
        rows.append(f"| `{leaf.path}` | " + " | ".join(cells) + f" | {leaf.about} |")
    return "\n".join(rows) + "\n"


def _access(leaf: Leaf, part: Part) -> Access | None:
    if part.role is Role.COORDINATOR and leaf.bulk is not (part is Part.BULK):
        return None
    if leaf.writer is part.role:
        return Access.WRITE
    return Access.READ if part.role in leaf.readers else None


def _bridge(user: User) -> list[Rule]:
    """A site's broker speaks for the site's devices at the central one, and for no other."""
    allowed: list[Rule] = []
    for leaf in TABLE:
        path = f"{ROOT}/{user.fleet}/" + leaf.path.replace("{block}", "+").replace("{k}", "+")
        access = _access(leaf, Part.DEVICE)
        if access is not None:
            allowed += [(access, path.replace("{id}", d)) for d in user.site] if "{id}" in path else [(access, path)]
    return allowed
