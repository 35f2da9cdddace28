"""The demo's live page: where it is served, and what is said where it cannot be."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from pathlib import Path

from rich.console import Console

from tools.demo.processes import Processes

USUAL = 8088


def page(console: Console, parties: object, config: Path, *, wanted: bool) -> None:
    """Start the page beside the fleet's processes, and say where; one line where the extra is missing."""
    if not wanted or not isinstance(parties, Processes):
        return
    if importlib.util.find_spec("nicegui") is None:
        console.print('No live page: pip install "relief-edge\\[dashboard]" brings it.')
        return
    port = _free()
    parties.page(config, port)
    console.print(f"Live page: http://localhost:{port}/", highlight=False)


def _free() -> int:
    """The usual port, so that a page that stayed open finds the next demo; else any."""
    for port in (USUAL, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no port is free on loopback")
