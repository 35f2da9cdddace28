"""New runtimes for a fleet, wave by wave: a few devices first, more when those are well, all back when they are not."""

from __future__ import annotations

import math
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from device_runtime.bundle import Manifest, file_digest, unpack
from protocol.config import BrokerConfig
from protocol.connection import connection
from protocol.errors import ProtocolError
from protocol.messages import PROTOCOL, Reply, Report, Request, Status, decode
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received, Stopped, Transport
from protocol.waiting import take

PIECE = 1 << 18
SETTLE = 2.0  # seconds in which all retained births arrive


class RolloutFailed(ValueError):
    """A wave was not well; the text says which devices, why, and what became of them."""


def waves(devices: Iterable[str], canary: int, then: str) -> list[list[str]]:
    """`canary` devices first, then so many at a time: "25%" of all, or a number. ValueError for what is neither."""
    left = sorted(devices)
    try:
        share = float(then.removesuffix("%"))
        step = math.ceil(len(left) * share / 100) if then.endswith("%") else int(then)
    except ValueError:
        step = 0
    if (step < 1 and left) or canary < 1:
        raise ValueError(f"--canary {canary} --then {then}: write a number of devices, or a percentage as 25%")
    planned = [left[:canary]] if left else []
    planned += [left[n : n + step] for n in range(canary, len(left), step)] if left else []
    return planned


@dataclass
class Seen:
    """What a device has said of itself since we began to listen."""

    status: Status
    boot: str  # of its first birth
    report: Report | None = None


@dataclass
class Rollout:
    """Listens to a fleet and orders updates through its coordinator.

    patience    seconds that a wave may take until all its devices are born with the new runtime
    watch       seconds that they must stay
    """

    fleet: str
    transport: Transport
    identity: str
    patience: float = 900.0
    watch: float = 30.0
    say: Callable[[str], None] = print
    devices: dict[str, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._topics = Topics(self.fleet)
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._replies: dict[str, Reply] = {}

    def open(self) -> None:
        """Connect and hear who is there. ValueError where the broker refuses us."""
        self.transport.open(self._inbox.put)
        self._until(lambda: False, SETTLE)

    def run(self, planned: list[list[str]], runtime: str, args: dict[str, object]) -> None:
        """Update wave by wave. RolloutFailed where a wave is not well; that wave is back on what it ran before."""
        for number, wave in enumerate(planned, 1):
            name = "canary" if number == 1 else f"wave {number}"
            self.say(f"{name}: {', '.join(wave)}")
            began = time.monotonic()
            order = self._order(wave, args)
            bad = self._wait(wave, runtime, order)
            if bad:
                kept = [one for one in wave if self.devices[one].status.runtime == runtime]
                if kept:
                    self.say(f"{name}: back with {', '.join(kept)}")
                    self._order(kept, {"back": True, "reason": "its wave was not well"})
                    self._until(lambda kept=kept: not any(self._has(d, runtime) for d in kept), self.patience)  # type: ignore[misc]
                told = "; ".join(f"{device}: {why}" for device, why in bad.items())
                raise RolloutFailed(f"{name} was not well, nothing more is updated: {told}")
            self.say(f"{name}: {len(wave)} of {len(wave)} run {runtime} after {time.monotonic() - began:.0f} s")

    def _wait(self, wave: list[str], runtime: str, order: str) -> dict[str, str]:
        """Why devices of the wave are not well; empty if all are."""

        def refused() -> dict[str, str]:
            reports = {device: self.devices[device].report for device in wave}
            return {d: r.reason for d, r in reports.items() if r and r.id == order and not r.ok}

        self._until(lambda: bool(refused()) or all(self._has(d, runtime) for d in wave), self.patience)
        if bad := refused():
            return bad
        late = {d: f"not born with {runtime} within {self.patience:g} s" for d in wave if not self._has(d, runtime)}
        if late:
            return late
        self._until(lambda: not all(self._has(d, runtime) for d in wave), self.watch)
        return {d: f"did not stay: {self._now(d)}" for d in wave if not self._has(d, runtime)}

    def _has(self, device: str, runtime: str) -> bool:
        status = self.devices[device].status
        return status.online and status.runtime == runtime

    def _now(self, device: str) -> str:
        status = self.devices[device].status
        return f"runs {status.runtime}" if status.online else f"offline ({status.reason})"

    def _order(self, devices: list[str], args: dict[str, object]) -> str:
        id = secrets.token_hex(8)
        asked = {"devices": devices, "order": "update_runtime", "args": args}
        request = Request.model_validate({"id": id, "operator": self.identity, "kind": "order", "args": asked})
        self.transport.publish(self._topics.coordinator("request"), request.encode())
        self._until(lambda: id in self._replies, 15.0)
        reply = self._replies.get(id)
        if reply is None or not reply.ok:
            why = reply.reason if reply else "it did not answer; is it running, and of this version?"
            raise RolloutFailed(f"the coordinator passes nothing on: {why}")
        return id

    def _until(self, done: Callable[[], bool], patience: float) -> None:
        end = time.monotonic() + patience
        while not done() and (left := end - time.monotonic()) > 0:
            try:
                self._hear(take(self._inbox, left))
            except queue.Empty:
                return

    def _hear(self, event: Event) -> None:
        if isinstance(event, Connected):
            device = self._topics.device
            self.transport.subscribe(device("+", "status"), device("+", "report"), self._topics.reply(self.identity))
        elif isinstance(event, Stopped):
            raise ValueError(event.reason)
        elif isinstance(event, Received) and event.payload:
            try:
                self._message(self._topics.parse(event.topic) or (), event.payload)
            except ProtocolError as error:
                self.say(f"{event.topic}: {error}")

    def _message(self, levels: tuple[str, ...], payload: bytes) -> None:
        if levels[:2] == ("coordinator", "reply"):
            reply = decode(Reply, payload)
            self._replies[reply.id] = reply
        elif len(levels) == 3 and levels[2] == "status":
            status = decode(Status, payload)
            seen = self.devices.setdefault(levels[1], Seen(status, status.boot))
            seen.status = status
        elif len(levels) == 3 and levels[2] == "report" and levels[1] in self.devices:
            report = decode(Report, payload)
            if report.kind == "update_runtime":
                self.devices[levels[1]].report = report


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
    unknown = sorted(set(only) - set(devices))
    if unknown:
        raise ValueError(f"no device of this fleet: {', '.join(unknown)}")
    if manifest.protocol != PROTOCOL:
        say(f"the bundle speaks protocol {manifest.protocol}, this tool {PROTOCOL}: update the coordinator first")
    wanted = [name for name in devices if not only or name in only]
    for name in sorted(wanted):
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
        rollout = Rollout(file.fleet, connection(file.broker, identity), identity, patience, watch, typer.echo)
        serving = None if url else Serving(bundle, address or towards(file.broker), port)
        try:
            rollout.open()
            planned = waves(chosen(rollout.devices, manifest, device or [], typer.echo), canary, then)
            if not planned:
                typer.echo("nothing to do")
                return
            where = url or (serving.url if serving else "")
            args = {"url": where, "sha256": file_digest(bundle), "size": bundle.stat().st_size}
            rollout.run(planned, manifest.runtime, args)
        finally:
            rollout.transport.close()
            if serving:
                serving.close()
