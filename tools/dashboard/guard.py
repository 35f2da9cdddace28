"""Who may open the page: an ASGI layer in front of everything, sockets included.

On loopback nobody is asked for a password, but a page of another site must not speak to ours through the visitor's
browser: Host and Origin are checked always.
"""

from __future__ import annotations

import hmac
import html
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "relief_session"
HOURS = 12.0  # that a login lasts
PAUSE = 1.0  # seconds until the next try, doubled by every wrong one, for everybody
LONGEST_PAUSE = 60.0
MAX_FORM = 4096  # bytes

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>RELIEF: log in</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{{color-scheme:light dark;--b:#fff;--t:#16202b;--a:#0b5fad}}
@media(prefers-color-scheme:dark){{:root{{--b:#11171d;--t:#e8edf2;--a:#7ab8ff}}}}
body{{background:var(--b);color:var(--t);font:16px/1.5 system-ui,sans-serif;display:grid;
place-items:center;min-height:90vh}}
form{{display:grid;gap:.75rem;width:min(20rem,90vw)}}input,button{{font:inherit;padding:.6rem;border-radius:.4rem;
border:1px solid var(--t);background:transparent;color:inherit}}
button{{background:var(--a);color:var(--b);border:0;font-weight:600}}
:focus-visible{{outline:3px solid var(--a);outline-offset:2px}}</style></head><body><main>
<form method="post" action="/login"><h1>RELIEF</h1><p>Fleet {fleet}</p><p role="alert">{told}</p>
<label for="password">Password</label><input id="password" name="password" type="password" required autofocus
autocomplete="current-password"><button>Log in</button></form></main></body></html>"""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Lets through who is logged in, or everybody where `password` is None (loopback only)."""

    def __init__(self, app: App, *, fleet: str, password: str | None, secure: bool = False) -> None:
        self._app, self._fleet, self._password, self._secure = app, fleet, password, secure
        self._sessions: dict[str, float] = {}
        self._wrong, self._not_before = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if not self._same_site(headers):
            return await _refuse(scope, send, 403, "This address is not one of this page's own.")
        if self._password is None or self._known(headers):
            return await self._app(scope, receive, send)
        if scope["type"] == "http" and scope["path"] == "/login" and scope["method"] == "POST":
            return await self._log_in(receive, send)
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return await self._show(send, 401, "")
        return await _refuse(scope, send, 401, "Log in first.")

    def _same_site(self, headers: MutableMapping[str, str]) -> bool:
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return False
        # Without a password only loopback is served; a foreign name that resolves to it is somebody else's page.
        return self._password is not None or is_loopback(urlsplit(f"//{host}").hostname or "")

    def _known(self, headers: MutableMapping[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        now = time.monotonic()
        self._sessions = {token: until for token, until in self._sessions.items() if until > now}
        return cookie is not None and cookie.value in self._sessions

    async def _log_in(self, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > MAX_FORM or not message.get("more_body"):
                break
        # No await from here until the try is counted: of many that wait for their bodies together only one is a try.
        now = time.monotonic()
        if now < self._not_before:
            return await self._show(send, 429, f"Too many wrong passwords: wait {self._not_before - now:.0f} s.")
        given = parse_qs(body.decode(errors="replace")).get("password", [""])[0]
        if not hmac.compare_digest(given.encode(), (self._password or "").encode()):
            self._wrong += 1
            self._not_before = now + min(PAUSE * 2 ** (self._wrong - 1), LONGEST_PAUSE)
            return await self._show(send, 401, "That password is wrong.")
        self._wrong = 0
        token = secrets.token_urlsafe(32)
        self._sessions[token] = now + HOURS * 3600
        cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={HOURS * 3600:.0f}"
        await send(
            {
                "type": "http.response.start",
                "status": 303,
                "headers": [
                    (b"location", b"/"),
                    (b"set-cookie", (cookie + "; Secure" * self._secure).encode()),
                ],
            }
        )
        return await send({"type": "http.response.body", "body": b""})

    async def _show(self, send: Send, status: int, told: str) -> None:
        page = PAGE.format(fleet=html.escape(self._fleet), told=html.escape(told))
        await _answer(send, status, page, "text/html; charset=utf-8")


async def _answer(send: Send, status: int, text: str, kind: str) -> None:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def _refuse(scope: Scope, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
    else:
        await _answer(send, status, why, "text/plain; charset=utf-8")
