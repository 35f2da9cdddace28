"""The protocol's errors.

ProtocolError
 +-- Malformed      a payload is not the message it should be
 +-- TooLarge       a payload is above what the broker or we ourselves take
 +-- Unavailable    no connection to the broker could be made
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Anything that goes wrong between two parties."""


class Malformed(ProtocolError):
    """A payload that cannot be read as `kind`; the text says which field and what was expected."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason = kind, reason


class TooLarge(ProtocolError):
    """A payload of `size` bytes where at most `limit` are allowed."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what}: {size:,} bytes, at most {limit:,} are allowed")
        self.size, self.limit = size, limit


class Unavailable(ProtocolError):
    """The broker at `where` cannot be reached or refuses us; the text says what to do."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"broker {where}: {reason}")
