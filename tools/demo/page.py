"""The demo's live page: a process of its own that gives way to the fleet whenever both want the processor."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from tools.demo.processes import PATIENCE, _die_with_parent

USUAL = 8088
NICE = 15


@contextlib.contextmanager
def page(console: Console, config: Path, logs: Path, *, wanted: bool) -> Iterator[str | None]:
    """Serve the page while the block runs, and say where; one line where the extra is missing. Yields its address."""
    if not wanted:
        yield None
        return
    if importlib.util.find_spec("nicegui") is None:
        console.print('No live page: pip install "relief-edge\\[dashboard]" brings it.')
        yield None
        return
    port = _free()
    command = [sys.executable, "-m", "tools.cli", "dashboard", "--config", str(config), "--port", str(port)]
    with (logs / "dashboard.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--operator", "demo", "--control"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_give_way,
        )
    console.print(f"Live page: http://localhost:{port}/", highlight=False)
    try:
        yield f"http://localhost:{port}/"
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _give_way() -> None:
    os.nice(NICE)
    _die_with_parent()


def _free() -> int:
    """The usual port, so that a page that stayed open finds the next demo; else any."""
    for port in (USUAL, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no port is free on loopback")
