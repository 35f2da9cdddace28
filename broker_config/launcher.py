"""Starts Mosquitto on a free loopback port for as long as somebody needs it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from broker_config.mosquitto import Mosquitto, find_or_fetch
from broker_config.settings import loopback

START_PATIENCE = 10.0  # seconds until it accepts
STOP_PATIENCE = 1.5  # seconds between SIGTERM and SIGKILL
PORT_TRIES = 5
PORTS_OF_LINUX = ("/proc/net/tcp", "/proc/net/tcp6")

Configure = Callable[[int, Path], str]  # port, private folder -> text of mosquitto.conf


class BrokerFailed(Exception):
    """Mosquitto did not start; the text holds its own words."""


class Broker:
    """A running Mosquitto: `host`, `port`, `pid`, `log`. Ends with its `with` block, or else with this process.

    folder       private files (configuration, log, persistence); made and removed here if not given
    configure    makes the configuration; the loopback profile if not given
    port         a fixed port instead of a free one
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *,
        mosquitto: Mosquitto | None = None,
        folder: Path | None = None,
        configure: Configure | None = None,
        persistence: bool = False,
        port: int | None = None,
    ) -> None:
        found, told = (mosquitto, "") if mosquitto else find_or_fetch()
        if found is None:
            raise BrokerFailed(told)
        self.mosquitto = found
        self.port = port or 0
        self._fixed = port is not None
        self._given, self._folder = folder, Path()
        self._configure = configure or (
            lambda port, private: loopback(port, private, user=_user(), persistence=persistence)
        )
        self._said: dict[str, int] = {}  # bytes of each log that are of an earlier start
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """Of the Mosquitto that runs."""
        if self._process is None:
            raise BrokerFailed("the broker is not running: call start")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What Mosquitto wrote since it was started last."""
        said = ""
        for name in ("mosquitto.log", "output.log"):
            file = self._folder / name
            if file.is_file():
                said += file.read_bytes()[self._said.get(name, 0) :].decode(errors="replace")
        return said

    def start(self) -> Broker:
        """Start and wait until it accepts. BrokerFailed with Mosquitto's log otherwise."""
        if self._given is None and not self._folder.name:
            self._folder = Path(tempfile.mkdtemp(prefix="relief-broker-"))
        elif self._given is not None:
            self._folder = self._given
            self._folder.mkdir(parents=True, exist_ok=True)
        for left in reversed(range(1 if self._fixed else PORT_TRIES)):
            if not self._fixed:
                self.port = _free_port(self.host)
            try:
                self._launch()
                return self
            except _PortTaken:
                if not left:
                    self.stop()
                    raise BrokerFailed(f"port {self.port} is taken by another program: choose another") from None
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL); files stay, `start` again on the same port with `restart`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Start again on the same port with the same files."""
        self._end()
        self._fixed = True
        self._launch()

    def stop(self) -> None:
        """End it within 2 s and remove its private files."""
        self._end()
        if self._given is None and self._folder.name:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = Path()

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        conf = self._folder / "mosquitto.conf"
        conf.write_text(self._configure(self.port, self._folder))
        log = self._folder / "mosquitto.log"
        self._said = {log.name: log.stat().st_size} if log.is_file() else {}
        started = threading.Event()
        # The kernel's parent-death signal goes out when the *thread* that forked ends, so one waits for the process.
        self._process, self._keeper = (
            None,
            threading.Thread(target=self._keep, args=(conf, started), name="broker keeper", daemon=True),
        )
        self._keeper.start()
        started.wait()
        self._await()

    def _keep(self, conf: Path, started: threading.Event) -> None:
        parent = os.getpid()
        try:
            with (self._folder / "output.log").open("wb") as output:
                process = subprocess.Popen(
                    [self.mosquitto.program, "-c", conf],
                    env={**os.environ, **self.mosquitto.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us: the parties say goodbye while the broker still runs
                    preexec_fn=lambda: _die_with(parent),
                )
            self._process = process
        finally:
            started.set()
        process.wait()

    def _await(self) -> None:
        until = time.monotonic() + START_PATIENCE
        process = self._process
        while process is not None and process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1):
                if process.poll() is None and _listens(process.pid, self.port):
                    return
            time.sleep(0.01)
        told = self.log.strip() or "it wrote nothing; a trailing comment on a line of its configuration does that"
        running = process is not None and process.poll() is None
        self._end()
        if "Address already in use" in told:
            raise _PortTaken
        what = f"does not accept after {START_PATIENCE:g} s" if running else "did not start"
        raise BrokerFailed(f"{self.mosquitto.program} {what}:\n{told}")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None


class _PortTaken(Exception):
    """Somebody else was faster."""


def _user() -> str | None:
    # As root Mosquitto becomes the user `mosquitto`, who cannot read our private folder.
    return "root" if os.geteuid() == 0 else None


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _listens(pid: int, port: int) -> bool:
    """Whether it is `pid` that accepts on `port`, not somebody who was faster (Linux; elsewhere taken on trust)."""
    tables = [table.read_text().splitlines()[1:] for table in map(Path, PORTS_OF_LINUX) if table.is_file()]
    if not tables:
        return True
    try:
        held = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    except PermissionError:  # it runs as another user by now
        return True
    except FileNotFoundError:  # it is about to end
        return False
    rows = [line.split() for table in tables for line in table]
    listening = (row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port)
    return any(f"socket:[{inode}]" in held for inode in listening)


_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def _die_with(parent: int) -> None:
    """In the child: be killed when `parent` ends, however it ends (Linux)."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)
