"""New runtimes for a fleet, wave by wave: served from here, tried by each board, back where a wave is not well."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer

from device_runtime.bundle import Manifest, file_digest, unpack
from protocol.config import BrokerConfig
from protocol.connection import connection
from protocol.messages import PROTOCOL
from tools.rollout import Rollout, Seen, known, waves

PIECE = 1 << 18


@dataclass
class RuntimeRollout(Rollout):
    """The runtime `runtime`, which devices get as `args` say (url, sha256, size)."""

    runtime: str = ""
    args: dict[str, Any] = field(default_factory=dict)

    def told(self) -> str:
        return f"run {self.runtime}"

    def give(self, wave: list[str]) -> dict[str, str]:
        order = self.order(wave, "update_runtime", self.args)

        def refused() -> dict[str, str]:
            return {d: r.reason for d, r in self.reports(wave, order).items() if not r.ok}

        self.until(lambda: bool(refused()) or all(self.has(d) for d in wave), self.patience)
        if bad := refused():
            return bad
        late = {d: f"not born with {self.runtime} within {self.patience:g} s" for d in wave if not self.has(d)}
        if late:
            return late
        self.until(lambda: not all(self.has(d) for d in wave), self.watch)
        return {d: f"did not stay: {self._now(d)}" for d in wave if not self.has(d)}

    def take_back(self, wave: list[str]) -> list[str]:
        kept = [one for one in wave if self.devices[one].status.runtime == self.runtime]
        if kept:
            self.order(kept, "update_runtime", {"back": True, "reason": "its wave was not well"})
            self.until(lambda: not any(self.has(d) for d in kept), self.patience)
        return kept

    def has(self, device: str) -> bool:
        """Whether the device runs it now."""
        status = self.devices[device].status
        return status.online and status.runtime == self.runtime

    def _now(self, device: str) -> str:
        status = self.devices[device].status
        return f"runs {status.runtime}" if status.online else f"offline ({status.reason})"


class Serving:
    """One file over HTTP below a name that cannot be guessed, with ranges; what matters is the digest."""

    def __init__(self, archive: Path, address: str, port: int = 0) -> None:
        self.path = f"/{secrets.token_hex(16)}/{archive.name}"
        path, size = self.path, archive.stat().st_size

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                begin = _begin(self.headers.get("Range", ""), size)
                if self.path != path or begin is None:
                    self.send_error(404)
                    return
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(size - begin))
                self.end_headers()
                with archive.open("rb") as file:
                    file.seek(begin)
                    while piece := file.read(PIECE):
                        self.wfile.write(piece)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer((address, port), Handler)
        self.url = f"http://{address}:{self._server.server_port}{self.path}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


def _begin(header: str, size: int) -> int | None:
    if not header:
        return 0
    number = header.removeprefix("bytes=").partition("-")[0]
    return int(number) if number.isdigit() and int(number) < size else None


def towards(broker: BrokerConfig) -> str:
    """The address by which machines on the broker's side reach this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((broker.host, broker.port))  # sends nothing
        return str(probe.getsockname()[0])


def chosen(devices: dict[str, Seen], manifest: Manifest, only: list[str], say: Callable[[str], None]) -> list[str]:
    """Who gets it: online, not yet of this version, and among `only` if that is said."""
    wanted = known(devices, only)
    if manifest.protocol != PROTOCOL:
        say(f"the bundle speaks protocol {manifest.protocol}, this tool {PROTOCOL}: update the coordinator first")
    for name in wanted:
        status = devices[name].status
        if not status.online:
            say(f"{name}: offline, left out")
        elif status.runtime == manifest.runtime:
            say(f"{name}: runs {manifest.runtime} already")
    return [n for n in wanted if devices[n].status.online and devices[n].status.runtime != manifest.runtime]


def update(
    bundle: Annotated[Path, typer.Option(help="A bundle made by `relief flash bundle`.", exists=True, dir_okay=False)],
    config: Annotated[Path, typer.Option("--config", "-c", help="The fleet's configuration file.")],
    canary: Annotated[int, typer.Option(help="So many devices first.")] = 2,
    then: Annotated[str, typer.Option(help="So many at a time after them: a number, or a percentage.")] = "25%",
    device: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
    watch: Annotated[float, typer.Option(help="Seconds that a wave must stay before the next.")] = 30.0,
    patience: Annotated[float, typer.Option(help="Seconds that a wave may take.")] = 900.0,
    url: Annotated[str | None, typer.Option(help="Where devices get it, if not from here.")] = None,
    address: Annotated[str | None, typer.Option(help="This machine's address, as devices reach it.")] = None,
    port: Annotated[int, typer.Option(help="Port to serve it on; 0: any.")] = 0,
    operator: Annotated[str, typer.Option(help="Name of this operator; one identity per tool.")] = "operator",
) -> None:
    """Give a fleet a new runtime, wave by wave; a wave that is not well goes back and ends it.

    Example: relief fleet update --bundle bundles/relief-update-jetpack6-0.2.0.tar -c fleet.toml --canary 2
    """
    import tempfile

    from tools.configuration import read

    with tempfile.TemporaryDirectory(prefix="relief-update-") as scratch:
        manifest = unpack(bundle, Path(scratch) / "bundle")
        file = read(config)
        identity = f"operator-{operator}-update"
        rollout = RuntimeRollout(
            file.fleet, connection(file.broker, identity), identity, patience, watch, typer.echo,
            runtime=manifest.runtime,
        )  # fmt: skip
        serving = None if url else Serving(bundle, address or towards(file.broker), port)
        try:
            rollout.open()
            planned = waves(chosen(rollout.devices, manifest, device or [], typer.echo), canary, then)
            if not planned:
                typer.echo("nothing to do")
                return
            where = url or (serving.url if serving else "")
            rollout.args = {"url": where, "sha256": file_digest(bundle), "size": bundle.stat().st_size}
            rollout.run(planned)
        finally:
            rollout.transport.close()
            if serving:
                serving.close()
