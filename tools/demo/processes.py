"""The demo's processes: started together, ended together, within three seconds whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from tools.parent import PARENT

PAGE = "dashboard"
NICE = 15  # of the page
PATIENCE = 2.0  # seconds between SIGTERM and SIGKILL
HASTE = 1.0  # the same when the demo is interrupted: within three seconds all of it is gone


class Processes:
    """`relief` processes of this demo, each with a log of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def device(self, id: str, file: Path) -> None:
        """Start a device process."""
        self._start(id, "device", "run", "--config", str(file), "--device", id)

    def coordinator(self, name: str, file: Path) -> None:
        """Start a coordinator process."""
        self._start(name, "coordinator", "run", "--config", str(file))

    def _start(self, name: str, *arguments: str, nice: int = 0) -> None:
        """Run `relief ARGUMENTS`; Ctrl-C on the terminal reaches only us, and we end it.

        No preexec_fn: Ctrl-C within the hooks that Python then runs around fork is swallowed, and one of them would
        keep the lock of logging for ever.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "tools.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", PARENT: str(os.getpid())},
            )
        if nice:
            os.setpriority(os.PRIO_PROCESS, self._running[name].pid, nice)

    def page(self, file: Path, port: int) -> None:
        """Start the live page: it gives way to the fleet whenever both want the processor."""
        options = ("--config", str(file), "--port", str(port), "--operator", "demo", "--control")
        self._start(PAGE, "dashboard", *options, nice=NICE)

    def stop_all(self) -> None:
        """End everything at once and soon: the patience is spent once, not once for each."""
        self.stop(*list(self._running), patience=HASTE)

    def stop(self, *names: str, patience: float = PATIENCE) -> None:
        """Ask these to end; insist after `patience` seconds."""
        chosen = {name: self._running.pop(name) for name in names if name in self._running}
        for process in chosen.values():
            _signal(process, signal.SIGCONT, signal.SIGTERM)
        deadline = time.monotonic() + patience
        for process in chosen.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()

    def kill(self, name: str) -> None:
        """End it with -9, as a crash or a power cut would; `device` starts it again."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def fallen(self) -> str | None:
        """The first process that ended by itself with an error, and the end of its log; None if all are well."""
        for name, process in self._running.items():
            code = process.poll()
            if code and name != PAGE:  # without it the demo goes on
                tail = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()[-5:]
                return f"{name} ended with code {code}:\n  " + "\n  ".join(tail)
        return None

    def ended(self, name: str) -> bool:
        """Whether it ran to its end."""
        process = self._running.get(name)
        return process is None or process.poll() is not None


def _signal(process: subprocess.Popen[bytes], *signals: signal.Signals) -> None:
    for number in signals:
        if process.poll() is None:
            process.send_signal(number)


def shares(logs: Path, devices: Iterable[str]) -> dict[str, float]:
    """The share of a CPU core that each device had while it trained, by its own log; devices that ended saying it."""
    found = {}
    for id in devices:
        log = logs / f"{id}.log"
        said = re.findall(r"([0-9.]+)% of a core achieved", log.read_text(errors="replace")) if log.exists() else []
        if said:
            found[id] = float(said[-1]) / 100
    return found
