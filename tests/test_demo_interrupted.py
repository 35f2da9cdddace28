"""Ctrl-C at any moment of the demo ends every process that it started, within three seconds and with one clear line."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import slowness

ROOT = Path(__file__).parent.parent
SECONDS = 3.0
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]


def marked(mark: bytes) -> list[str]:
    """Command lines of all living processes that have the mark in their environment, whoever their parent is now."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "environ").read_bytes():
                found.append(f"{process.name} {(process / 'cmdline').read_bytes().decode()}")
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def hears_interrupts() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and everything below inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# What the demo has said when it is interrupted; how many processes run then at least.
MOMENTS = {"importing": ("", 1), "devices": ("Live page", 9), "fedavg": ("RELIEF: ", 10)}


@pytest.mark.parametrize("moment", [*MOMENTS, "first round"])
def test_ctrl_c_ends_every_process_within_three_seconds(moment: str, tmp_path: Path) -> None:
    mark = f"RELIEF_TEST={secrets.token_hex(8)}"
    key, value = mark.split("=")
    said, least = MOMENTS.get(moment, ("Live page", 10))
    options = ["demo", "--data", "synthetic", "--rounds", "15", "--folder", str(tmp_path)]
    log = tmp_path / "said"
    with log.open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", *options],
            cwd=ROOT, env={**os.environ, key: value}, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=hears_interrupts,
        )  # fmt: skip
    try:
        end = time.monotonic() + 200

        def there() -> bool:
            begun = moment != "first round" or any(f.stat().st_size for f in tmp_path.rglob("metrics.jsonl"))
            loaded = "pydantic_core" in Path(f"/proc/{demo.pid}/maps").read_text()  # half of the imports are done
            return loaded and said in log.read_text() and begun and len(marked(mark.encode())) >= least

        while not there():
            assert demo.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        demo.send_signal(signal.SIGINT)
        began = time.monotonic()
        code = demo.wait(30)
        while (left := marked(mark.encode())) and time.monotonic() - began < 30:
            time.sleep(0.02)
        took = time.monotonic() - began
        assert left == []
        assert took < SECONDS * slowness()
        assert code == 130
        assert "Traceback" not in log.read_text()
        lines = [line for line in log.read_text().splitlines() if "stopped" in line or "interrupted" in line]
        assert len(lines) == 1
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
