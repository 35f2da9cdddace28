"""`relief dashboard`: the live page of a fleet."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tools.dashboard.guard import is_loopback
from tools.steering import Config, Name, Operator, fleet_of

MISSING = 'the page needs the extra "dashboard": pip install "relief-edge[dashboard]"'


def dashboard(
    config: Config = None,
    broker_host: Annotated[str, typer.Option(help="Broker's host, without a configuration file.")] = "127.0.0.1",
    broker_port: Annotated[int, typer.Option(help="Broker's port, without a configuration file.")] = 1883,
    fleet: Name = "relief",
    host: Annotated[
        str, typer.Option(help="Address to serve on; outside loopback a password is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0: a free one.", min=0, max=65535)] = 8088,
    control: Annotated[bool, typer.Option(help="May pause, resume, label and quarantine.")] = False,
    operator: Operator = "operator",
    password_file: Annotated[
        Path | None, typer.Option(help="File with the password; else RELIEF_DASHBOARD_PASSWORD.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of the page (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
) -> None:
    """Serve a live page of the fleet: devices, rounds, F1, energy, alarms.

    Example: relief dashboard --config fleet.toml --control
    """
    if importlib.util.find_spec("nicegui") is None:
        raise ImportError(MISSING)
    password = password_file.read_text().strip() if password_file else os.environ.get("RELIEF_DASHBOARD_PASSWORD")
    if not is_loopback(host) and not password:
        raise ValueError(
            f"host {host}: outside loopback the page needs a password; set RELIEF_DASHBOARD_PASSWORD or --password-file"
        )
    if (tls_cert is None) != (tls_key is None):
        raise ValueError("--tls-cert and --tls-key go together: set both or neither")
    if not is_loopback(host) and tls_cert is None:
        typer.echo("Without --tls-cert and --tls-key the password travels in the clear on this network.", err=True)
    shown = fleet_of(config, broker_host, broker_port, fleet, operator)
    with _listening(host, port) as listener:
        from tools.dashboard.feed import Feed
        from tools.dashboard.serve import serve

        feed = Feed(shown.name, shown.connection("dashboard"), rights=control)
        scheme, name = "https" if tls_cert else "http", "localhost" if is_loopback(host) else host
        where = f"{scheme}://{name}:{listener.getsockname()[1]}/"
        typer.echo(f"Fleet {shown.name}: {where}" + ("" if control else " (read only; --control to steer)"))
        tls = (str(tls_cert), str(tls_key)) if tls_cert else None
        with tempfile.TemporaryDirectory(prefix="relief-dashboard-") as private:
            os.environ["NICEGUI_STORAGE_PATH"] = private  # read when nicegui is imported
            serve(feed, listener, password=password, tls=tls)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port} cannot be served on: {error.strerror}; choose another --port") from None
        listener.listen()  # who comes before the server is ready waits instead of being turned away
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield listener
