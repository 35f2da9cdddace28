"""Files that keep broker and coordinator running: systemd units and a drop-in, a compose file, log rotation."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from string import Template

from broker_config.acl import Part
from broker_config.directory import Directory, write
from broker_config.mosquitto import find

TEMPLATES = Path(__file__).parent / "templates"
TARGETS = {
    "relief-broker.service": "relief-broker.service",
    "limits.conf": "relief-broker.service.d/limits.conf",
    "relief-coordinator.service": "relief-coordinator.service",
    "logrotate": "logrotate/relief-broker",
    "compose.yaml": "compose.yaml",
    "relief.toml": "relief.toml",
}
SIZED = ("limits.conf", "compose.yaml")  # what depends on how many devices there are
MEMORY_BASE = 64 * 1024 * 1024  # bytes of a broker with nothing queued, and room
# Limits rise in steps, so that one more device seldom asks for a restart of the broker.
FILES_STEP, MEMORY_STEP = 1024, 64 * 1024 * 1024


def _own_command() -> Path:
    """`relief` of the environment that runs this, or where the guide installs it."""
    beside = Path(sys.executable).parent / "relief"
    return beside if beside.is_file() else Path("/opt/relief/bin/relief")


def write_all(directory: Directory) -> list[Path]:
    """Write DIR/deploy; the files."""
    return _write(directory, TARGETS)


def resize(directory: Directory) -> list[str]:
    """Write again what depends on how many devices there are, where a limit has changed; those that rose, in words.

    Everything else in DIR/deploy stays as people made it their own.
    """
    file = directory.path / "deploy" / TARGETS["limits.conf"]
    if not file.exists() or not directory.record.identities:
        return []
    now = limits(directory)
    before = {name: int(value) for name, value in re.findall(r"^(\w+)=(\d+)$", file.read_text(), re.MULTILINE)}
    if before == now:
        return []
    _write(directory, SIZED)
    return [f"{name}={value} (was {before.get(name, 0)})" for name, value in now.items() if value > before.get(name, 0)]


def limits(directory: Directory) -> dict[str, int]:
    """What the broker's service needs: open files, and bytes of memory."""
    devices = max(1, len(directory.record.of(Part.DEVICE)))
    return {
        "LimitNOFILE": _stepped(1024 + 4 * devices, FILES_STEP),
        "MemoryMax": _stepped(MEMORY_BASE + 2 * directory.sizes().bytes, MEMORY_STEP),
    }


def _stepped(needed: int, step: int) -> int:
    return -(-needed // step) * step


def _write(directory: Directory, templates: Iterable[str]) -> list[Path]:
    record, needed = directory.record, limits(directory)
    home, found = Path(record.home), find()
    fleet = next(iter(record.identities.values())).fleet  # the first that was made, whatever came later
    keys, broker = (directory.path / "identities").stat(), (directory.path / "broker").stat()
    values = {
        "where": str(directory.path),
        "home": str(home),
        "broker": str((directory.path / "broker").absolute()),
        "identities": str((directory.path / "identities" / fleet).absolute()),
        "deploy": str((directory.path / "deploy").absolute()),
        # A path below /home or /root would be hidden from the service.
        "protect_home": "read-only" if home.is_relative_to("/home") or home.is_relative_to("/root") else "true",
        "mosquitto": str(found.program) if found and not found.environment else "/usr/sbin/mosquitto",
        "relief": str(_own_command()),
        "config": "/etc/relief/relief.toml",
        "fleet": fleet,
        "host": record.hosts[0],
        "port": str(record.port),
        "files": str(needed["LimitNOFILE"]),
        "memory": str(needed["MemoryMax"]),
        "said": directory.sizes().said[-1],
        "uid": str(keys.st_uid),
        "gid": str(keys.st_gid),
        "broker_uid": str(broker.st_uid),
        "broker_gid": str(broker.st_gid),
    }
    made = []
    for template in templates:
        path = directory.path / "deploy" / TARGETS[template]
        write(path, Template((TEMPLATES / template).read_text()).substitute(values).encode())
        made.append(path)
    return made
