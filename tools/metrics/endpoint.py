"""Where Prometheus scrapes a process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import start_http_server
from prometheus_client.registry import Collector, CollectorRegistry


def endpoint(collector: Collector, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve `collector` at http://host:port/metrics; its port, and how to end it. Port 0: a free one."""
    registry = CollectorRegistry()
    registry.register(collector)
    server, thread = start_http_server(port, addr=host, registry=registry)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join(2)

    return int(server.server_address[1]), end


def address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or :PORT, which is loopback. ValueError naming the text."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address: write HOST:PORT, for example 127.0.0.1:9464")
    return host.strip("[]") or "127.0.0.1", int(port)
