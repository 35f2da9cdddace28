"""Telling systemd how we are (sd_notify): ready, stopping, and still alive where the unit sets WatchdogSec."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Mapping


class Notify:
    """Silent where no service manager listens. `every` is how often `alive` is due, half of what systemd waits."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        patience = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = bool(self._address) and ours and patience.isdigit() and int(patience) > 0
        self.every = int(patience) / 2e6 if watched else math.inf

    def ready(self, status: str) -> None:
        self._say(f"READY=1\nSTATUS={status}")

    def alive(self, status: str) -> None:
        self._say(f"WATCHDOG=1\nSTATUS={status}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.connect(name)
            link.sendall(text.encode())
