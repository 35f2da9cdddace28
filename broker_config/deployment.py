"""Files that keep broker and coordinator running: systemd units and a drop-in, a compose file, log rotation."""

from __future__ import annotations

import os
import sys
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
MEMORY_BASE = 64 * 1024 * 1024  # bytes of a broker with nothing queued, and room


def _own_command() -> Path:
    """`relief` of the environment that runs this, or where the guide installs it."""
    beside = Path(sys.executable).parent / "relief"
    return beside if beside.is_file() else Path("/opt/relief/bin/relief")


def write_all(directory: Directory) -> list[Path]:
    """Write DIR/deploy; the files."""
    record = directory.record
    home, fleet = Path(record.home), record.fleets()[0]
    sizes, found = directory.sizes(), find()
    devices = len(record.of(Part.DEVICE))
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
        "files": str(1024 + 4 * max(devices, 1)),
        "memory": str(MEMORY_BASE + 2 * sizes.bytes),
        "said": sizes.said[-1],
        "uid": str(os.getuid()),
        "gid": str(os.getgid()),
        "broker_uid": str((directory.path / "broker").stat().st_uid),
        "broker_gid": str((directory.path / "broker").stat().st_gid),
    }
    made = []
    for template, target in TARGETS.items():
        path = directory.path / "deploy" / target
        write(path, Template((TEMPLATES / template).read_text()).substitute(values).encode())
        made.append(path)
    return made
