"""The system's own chromium for tests of the page, and the page's server as its users start it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 20_000  # milliseconds; a pass takes a few hundred


def find() -> str:
    """Where chromium is; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = find()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Visitor:
    """One page in the browser; what it complained about, and what it asked of other hosts."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url, self.complaints, self.foreign = url, [], []
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 1300}, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, self.url.replace("http", "ws"), "data:", "blob:")):
            self.foreign.append(request.url)

    def open(self, path: str = "") -> None:
        self.page.goto(self.url + path)
        self.page.wait_for_function("document.querySelector('#headline')?.textContent.includes('round')")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def until(self, expression: str) -> None:
        """Wait for a JavaScript expression to hold. AssertionError with what the page says instead."""
        try:
            self.page.wait_for_function(expression)
        except Exception as error:
            said = self.page.inner_text("body")
            raise AssertionError(f"{expression} does not hold ({error}); the page says:\n{said}") from None

    def close(self) -> None:
        self.context.close()


@contextmanager
def served(fleet: str, broker_port: int, *arguments: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """`relief dashboard` as a process; yields its address."""
    pytest.importorskip("nicegui", reason="the extra dashboard is not installed")
    command = [sys.executable, "-m", "tools.cli", "dashboard", "--fleet", fleet, "--broker-port", str(broker_port)]
    process = subprocess.Popen(
        [*command, "--port", "0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    said: list[str] = []
    assert process.stdout is not None
    address = next((word for line in process.stdout for word in _note(said, line).split() if "://" in word), None)
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        assert address, f"the page did not start: {''.join(said)}"
        yield address
    finally:
        process.terminate()
        code = process.wait(15)
        reader.join(5)
        process.stdout.close()
    assert code == 0, "".join(said)
    assert not any("Traceback" in line for line in said), "".join(said)


def _note(said: list[str], line: str) -> str:
    said.append(line)
    return line


def screenshot(page: Any, folder: Path, name: str) -> None:
    """A picture that a person can look at."""
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / name), full_page=True)
