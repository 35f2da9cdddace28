"""What the command's exit codes mean, and which page says what to do."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from protocol.errors import ConfigError, ProtocolError, Unavailable
from sensors.recording import DataError

HELP = "docs/exit-codes.md"


@dataclass(frozen=True)
class Code:
    """One exit code: its number, the part it belongs to and its section in the help page."""

    number: int
    part: str
    anchor: str


REFUSED = Code(1, "command", "1-refused")
USAGE = Code(2, "command", "2-usage")
CONFIGURATION = Code(10, "configuration", "10-configuration")
DATA = Code(20, "sensors", "20-recordings")
BROKER = Code(30, "broker", "30-broker")
PROTOCOL = Code(31, "protocol", "31-protocol")
DISK = Code(40, "coordinator", "40-disk")
EXTRA = Code(50, "installation", "50-missing-extra")
INTERRUPTED = Code(130, "command", "130-interrupted")
CODES = (REFUSED, USAGE, CONFIGURATION, DATA, BROKER, PROTOCOL, DISK, EXTRA, INTERRUPTED)


def code_of(error: BaseException) -> Code:
    """The exit code for an error that ended the command."""
    from broker_config.launcher import BrokerFailed

    kinds: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Code], ...] = (
        (ConfigError, CONFIGURATION),
        (DataError, DATA),
        ((Unavailable, BrokerFailed), BROKER),
        (ProtocolError, PROTOCOL),
        (ImportError, EXTRA),
        (KeyboardInterrupt, INTERRUPTED),
        (OSError, DISK),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), USAGE)


def mendable(error: Exception) -> bool:
    """Whether the error is something that a user can put right, so that a line says more than a traceback."""
    from broker_config.launcher import BrokerFailed

    if isinstance(error, ImportError):
        return "pip install" in str(error)
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    return isinstance(error, (ProtocolError, DataError, ValueError, BrokerFailed))


def told(error: Exception) -> tuple[int, tuple[str, str]]:
    """The exit code and two lines for a person. An error that nobody can mend is raised again."""
    if not mendable(error):
        raise error
    code = code_of(error)
    return code.number, (f"relief: {error}", f"exit code {code.number} ({code.part}): {HELP}#{code.anchor}")
