"""The protocol's errors.

ProtocolError
 +-- Malformed      a payload is not the message it should be
 +-- TooLarge       a payload is above what the broker or we ourselves take
 +-- Congested      too much already waits for the broker; later there is room again
 +-- Unavailable    no connection to the broker could be made
 +-- ConfigError    a configuration file that cannot be used
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


class Congested(ProtocolError):
    """`waiting` bytes already wait for the broker's answer where `limit` may; the message was not taken."""

    def __init__(self, topic: str, waiting: int, limit: int) -> None:
        super().__init__(
            f"{topic}: {waiting:,} of at most {limit:,} bytes wait for the broker already; "
            "try again later or raise broker.queue_bytes"
        )
        self.waiting, self.limit = waiting, limit


class Unavailable(ProtocolError):
    """The broker at `where` cannot be reached or refuses us; the text says what to do."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"broker {where}: {reason}")


class ConfigError(ProtocolError):
    """The configuration at `where` has `problems`, each naming key, value and what is allowed."""

    def __init__(self, where: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{where}: {problem}" for problem in problems))
        self.problems = problems
