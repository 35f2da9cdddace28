"""What the command's exit codes mean, and which page says what to do."""

from __future__ import annotations

import errno
import os
import sys
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
RECORD = Code(41, "coordinator", "41-record")
EXTRA = Code(50, "installation", "50-missing-extra")
BUNDLE = Code(60, "device", "60-bundle")
DEVICE = Code(61, "device", "61-already-running")
INTERRUPTED = Code(130, "command", "130-interrupted")
CODES = (REFUSED, USAGE, CONFIGURATION, DATA, BROKER, PROTOCOL, DISK, RECORD, EXTRA, BUNDLE, DEVICE, INTERRUPTED)


def _kinds() -> tuple[tuple[tuple[type[BaseException], ...], Code], ...]:
    """Which error has which code, the first that fits; only what is loaded can have been raised."""

    def known(*names: str) -> tuple[type[BaseException], ...]:
        pairs = (name.rsplit(".", 1) for name in names)
        return tuple(getattr(sys.modules[module], kind) for module, kind in pairs if module in sys.modules)

    return (
        ((ConfigError,), CONFIGURATION),
        ((DataError,), DATA),
        ((Unavailable,), BROKER),
        (known("broker_config.launcher.BrokerFailed", "broker_config.mosquitto.FetchFailed"), BROKER),
        (known("tools.broker_live.NotRunning"), BROKER),
        ((ProtocolError,), PROTOCOL),
        (known("coordinator.journal.JournalFull"), DISK),
        (known("coordinator.journal.JournalError", "coordinator.ledger.CannotResume"), RECORD),
        (known("coordinator.checkpoint.CheckpointError"), RECORD),
        (known("device_runtime.bundle.BadBundle", "models.kit.KitError"), BUNDLE),
        (known("device_runtime.local.AlreadyRunning"), DEVICE),
        (known("tools.rollout.RolloutFailed"), REFUSED),
        ((ImportError,), EXTRA),
        ((KeyboardInterrupt,), INTERRUPTED),
        ((OSError,), DISK),
        ((ValueError,), USAGE),
    )


def code_of(error: BaseException) -> Code | None:
    """The exit code for an error that ended the command; None for one that has none: a fault of ours."""
    return next((code for kinds, code in _kinds() if isinstance(error, kinds)), None)


def mendable(error: Exception) -> bool:
    """Whether the error is something that a user can put right, so that a line says more than a traceback."""
    if isinstance(error, ImportError):
        return "pip install" in str(error)
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    return code_of(error) is not None


def told(error: Exception) -> tuple[Code, tuple[str, str]]:
    """The exit code and two lines for a person. An error that nobody can mend is raised again."""
    code = code_of(error)
    if code is None or not mendable(error):
        raise error
    return code, (f"relief: {error}", f"exit code {code.number} ({code.part}): {HELP}#{code.anchor}")


def tell(error: Exception) -> Code:
    """Say it on standard error, with colours on a terminal that wants them; the error's code."""
    import typer

    code, (what, where) = told(error)
    colour = False if os.environ.get("NO_COLOR") else None
    typer.secho(what, err=True, fg="red", color=colour)
    typer.secho(where, err=True, dim=True, color=colour)
    return code
