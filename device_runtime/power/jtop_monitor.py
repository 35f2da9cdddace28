"""Power through jtop (jetson-stats), which runs in a child process of ours behind hard timeouts.

What can go wrong with jtop, and what is done: no service, no right to it or another version: its own text is handed on.
Service hung at connect: the child says nothing for `patience` seconds and is killed. Service stopped: the child
reports it and ends. Reader frozen while the service answers: the uptime inside the readings stands still.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from device_runtime.power.monitor import PowerError, Sample, now
from device_runtime.power.rails import total_rails, total_watts

_CHILD = Path(__file__).with_name("jtop_child.py")


class JtopMonitor:
    """Readings of a running jtop service, every `interval` seconds unless another client set another pace.

    patience   seconds to wait for the first reading; a reading older than this is not handed out
    python     how to start a Python that has jetson-stats
    """

    source = "jtop"

    def __init__(
        self, *, interval: float = 0.5, patience: float = 8.0, python: Sequence[str] = (sys.executable,)
    ) -> None:
        self.board = ""
        self._interval, self._patience, self._python = interval, patience, tuple(python)
        self._stale = max(3.0, 4 * interval)
        self._child: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._news = threading.Condition()
        self._latest: dict[str, Any] = {}
        self._changed = 0.0
        self._error = ""
        self._summed: tuple[str, ...] = ()

    @property
    def pid(self) -> int | None:
        """The child's, while it is open."""
        return self._child.pid if self._child else None

    def open(self) -> None:
        """Start the child and wait for its first reading. PowerError with jtop's own reason."""
        self.close()
        self._latest, self._error = {}, ""
        try:
            child = subprocess.Popen(
                [*self._python, str(_CHILD), str(self._interval)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        except OSError as cause:
            raise PowerError(self.source, f"cannot start {self._python[0]}: {cause.strerror}") from None
        self._child = child
        assert child.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(child.stdout,), name="jtop", daemon=True)
        self._listener.start()
        with self._news:
            self._news.wait_for(lambda: bool(self._latest or self._error), self._patience)
            error, rails = self._error, dict(self._latest.get("rails", {}))
        if not error and not self._latest:
            error = f"no answer within {self._patience:g} s; is it hung? run: sudo systemctl restart jtop"
        elif not error and not rails:
            error = "the service knows no power rail of this machine"
        if error:
            self.close()
            raise PowerError(self.source, error)
        self.board, self._summed = total_rails(rails)

    def read(self) -> Sample:
        """The newest reading, stamped with the time it was taken. PowerError once it no longer changes."""
        with self._news:
            latest, age, error = self._latest, now() - self._changed, self._error
        if error or not latest:
            raise PowerError(self.source, error or "not open")
        if age > self._stale:
            raise PowerError(self.source, f"the same reading for {age:.1f} s; run: sudo systemctl restart jtop")
        watts = total_watts(self.source, latest["rails"], self._summed)
        return Sample(
            latest["t"],
            watts,
            self.source,
            latest["rails"],
            self._summed,
            latest["temperatures"],
            latest["mode"],
        )

    def close(self) -> None:
        child, self._child = self._child, None
        listener, self._listener = self._listener, None
        if child is None:
            return
        child.kill()
        child.wait()
        if listener is not None:
            listener.join()  # ends with the child's output
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            values = _parse(line)
            with self._news:
                if "error" in values:
                    self._error = str(values["error"])
                elif values and values["uptime"] != self._latest.get("uptime"):
                    self._latest, self._changed = values, now()
                self._news.notify_all()
        with self._news:
            self._error = self._error or "its reader ended without a word"
            self._news.notify_all()


def _parse(line: str) -> dict[str, Any]:
    """A line of the child; {} for anything else, such as what a library prints."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    known = isinstance(values, dict) and ("error" in values or "uptime" in values)
    return values if known else {}
