"""NiceGUI behind the guard, on a socket that is already bound."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI
from nicegui import ui

from tools.dashboard.feed import Feed
from tools.dashboard.guard import Guard
from tools.dashboard.page import pages

LEAVE = 2  # seconds that open pages may take to go when the server ends


def serve(feed: Feed, listener: socket.socket, *, password: str | None, tls: tuple[str, str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. `tls`: certificate and key files."""
    app = FastAPI(openapi_url=None)
    pages(feed)
    # Nothing is bound to properties here, so the loop that looks for changes of bindings would only burn cycles.
    ui.run_with(
        app,
        title=f"RELIEF {feed.board.fleet}",
        favicon="◐",
        dark=False,
        language="en-US",
        binding_refresh_interval=None,
        tailwind=False,
        show_welcome_message=False,
    )
    guard = Guard(app, fleet=feed.board.fleet, password=password, secure=tls is not None)
    config = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=LEAVE,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    feed.start()
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        feed.close()
