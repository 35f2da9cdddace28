"""Who may open the page, sockets included."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tools.dashboard.guard import COOKIE, Guard, is_loopback

GOOD = "correct horse"


async def page(scope: Any, receive: Any, send: Any) -> None:
    kind = "websocket.accept" if scope["type"] == "websocket" else "http.response.start"
    await send({"type": kind, "status": 200, "headers": []})


def ask(guard: Guard, *, type: str = "http", path: str = "/", method: str = "GET", body: bytes = b"", **headers: str):
    """What the guard sends first and the rest of it."""
    given = {"host": "localhost:8088", "accept": "text/html", **headers}
    scope = {
        "type": type, "path": path, "method": method,
        "headers": [(k.encode(), v.encode()) for k, v in given.items() if v],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


def status(sent: list[dict[str, Any]]) -> Any:
    return sent[0].get("status", sent[0]["type"])


def log_in(guard: Guard, password: str) -> list[dict[str, Any]]:
    return ask(guard, path="/login", method="POST", body=f"password={password.replace(' ', '+')}".encode())


def test_on_loopback_nobody_is_asked() -> None:
    guard = Guard(page, fleet="f", password=None)
    assert status(ask(guard)) == 200
    assert ask(guard, type="websocket")[0]["type"] == "websocket.accept"


@pytest.mark.parametrize("type", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"host": "evil.example:8088"}, {"host": ""}], ids=str
)
def test_another_sites_page_cannot_speak_to_it_through_the_visitors_browser(type: str, headers: dict[str, str]) -> None:
    guard = Guard(page, fleet="f", password=None)
    assert status(ask(guard, type=type, **headers)) in (403, "websocket.close")


def test_with_a_password_nothing_opens_without_it() -> None:
    guard = Guard(page, fleet="f", password=GOOD)
    assert status(ask(guard)) == 401
    assert status(ask(guard, path="/_nicegui/x.js", accept="*/*")) == 401
    assert ask(guard, type="websocket")[0]["type"] == "websocket.close"
    assert status(ask(guard, cookie=f"{COOKIE}=guess")) == 401
    assert status(ask(guard, cookie="\x00=;;;")) == 401


def test_the_password_opens_pages_and_sockets() -> None:
    guard = Guard(page, fleet="f", password=GOOD, secure=True)
    sent = log_in(guard, GOOD)
    assert sent[0]["status"] == 303
    cookie = dict(sent[0]["headers"])[b"set-cookie"].decode()
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Secure"))
    token = cookie.split(";")[0]
    assert status(ask(guard, cookie=token)) == 200
    assert ask(guard, type="websocket", cookie=token)[0]["type"] == "websocket.accept"


def test_wrong_passwords_make_everybody_wait() -> None:
    guard = Guard(page, fleet="f", password=GOOD)
    assert status(log_in(guard, "wrong")) == 401
    assert status(log_in(guard, GOOD)) == 429


def test_of_many_tries_that_were_begun_before_the_first_was_wrong_only_one_counts() -> None:
    guard = Guard(page, fleet="f", password=GOOD)
    scope = {"type": "http", "path": "/login", "method": "POST", "headers": [(b"host", b"localhost:8088")]}

    async def attempt(password: str, bodies: asyncio.Event) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await bodies.wait()  # the headers are there, the body is not
            return {"type": "http.request", "body": f"password={password}".encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        await guard(scope, receive, send)
        return int(sent[0]["status"])

    async def attack() -> list[int]:
        bodies = asyncio.Event()
        guesses = [*(f"guess-{n}" for n in range(50)), GOOD.replace(" ", "+")]
        attempts = [asyncio.create_task(attempt(guess, bodies)) for guess in guesses]
        await asyncio.sleep(0)  # all of them wait for their body now
        bodies.set()
        return await asyncio.gather(*attempts)

    assert asyncio.run(attack()) == [401, *[429] * 50]


def test_a_form_without_end_is_not_read() -> None:
    guard = Guard(page, fleet="f", password=GOOD)
    assert status(ask(guard, path="/login", method="POST", body=b"x" * 100_000)) == 401


def test_the_fleets_name_cannot_put_anything_into_the_login_page() -> None:
    sent = ask(Guard(page, fleet="<script>", password=GOOD))
    assert b"<script>" not in sent[1]["body"]


def test_loopback_is_recognised() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", ""))
