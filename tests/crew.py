"""Child processes that a measurement needs alive: the first that ends by itself ends the waiting, and says why."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL


class Crew:
    """Python modules as processes, watched by a thread each; all end with the `with` block.

    folder    where what they say is kept, a file each
    fell      called from a watching thread when one of them ends although nobody ended it
    """

    def __init__(self, folder: Path, fell: Callable[[], None]) -> None:
        self._folder, self._fell = folder, fell
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchers: list[threading.Thread] = []
        self._ending = False
        self._dead: list[str] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for watcher in self._watchers:
            watcher.join()

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Run `python -m module arguments` under a name."""
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._processes[name] = process
        self._watchers.append(threading.Thread(target=self._watch, args=(name, process), daemon=True))
        self._watchers[-1].start()

    def check(self) -> None:
        """RuntimeError with the last lines of the first process that fell, if one did."""
        if self._dead:
            said = (self._folder / f"{self._dead[0]}.log").read_text(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError("\n  ".join([f"{self._dead[0]} ended before its time:", *said]))

    def _watch(self, name: str, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if not self._ending:
            self._dead.append(name)
            self._fell()
