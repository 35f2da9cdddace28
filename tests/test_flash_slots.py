"""Two slots and a link: whenever the power goes, a version that works is what starts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from device_runtime.bundle import MANIFEST, BadBundle, Manifest
from device_runtime.install import requirements, watch
from device_runtime.slots import Slots, Trial, confirm
from device_runtime.update import fetch

LAUNCH = Path(__file__).parents[1] / "device_runtime/units/launch"


def manifest(runtime: str) -> bytes:
    return Manifest("debian12-arm64", "aarch64", "3.11", "debian 12", runtime, 1, False, 1).encode()


def fill(slots: Slots, slot: str, runtime: str) -> None:
    """A version that says its name and ends."""
    path = slots.clear(slot)
    (path / "bin").mkdir()
    (path / "bin/relief").write_text(f"#!/bin/sh\necho {runtime} $1 $2\n")
    (path / "bin/relief").chmod(0o755)
    slots.complete(slot, manifest(runtime))


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    """The first version, confirmed."""
    made = Slots(tmp_path / "relief")
    made.base.mkdir()
    fill(made, "a", "one")
    made.switch("a")
    assert made.confirm()
    return made


def start(slots: Slots) -> str:
    """What the launcher starts."""
    environment = {**os.environ, "RELIEF_BASE": str(slots.base), "RELIEF_TRIAL": "0.2"}
    done = subprocess.run(["sh", LAUNCH], env=environment, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.split()[0]


def test_the_first_version_goes_into_the_first_slot_and_starts(slots: Slots) -> None:
    assert (slots.current, slots.spare, slots.trial) == ("a", "b", None)
    assert start(slots) == "one"


def test_a_new_version_is_on_trial_until_it_is_confirmed(slots: Slots) -> None:
    fill(slots, "b", "two")
    slots.switch("b")
    assert slots.trial == Trial("b", "a", 0)
    assert start(slots) == "two"
    assert slots.trial == Trial("b", "a", 1)
    assert slots.confirm()
    assert not slots.confirm()
    assert [start(slots) for _ in range(5)] == ["two"] * 5


def test_only_the_version_on_trial_confirms_it(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_from(slot: str) -> None:
        monkeypatch.setattr("device_runtime.slots.__file__", str(slots.path(slot) / "venv/lib/slots.py"))

    monkeypatch.setenv("RELIEF_BASE", str(slots.base))
    fill(slots, "b", "two")
    slots.switch("b")
    runs_from("a")  # the version before has not ended yet, and meets the broker once more
    confirm()
    assert slots.trial == Trial("b", "a", 0)
    runs_from("b")
    confirm()
    assert slots.trial is None


def test_a_version_that_never_reaches_the_broker_gives_way_after_three_starts(slots: Slots) -> None:
    fill(slots, "b", "two")
    slots.switch("b")
    assert [start(slots) for _ in range(5)] == ["two", "two", "two", "one", "one"]
    assert slots.failed == "not at the broker in 3 starts"
    assert slots.trial is None


def test_a_version_that_hangs_on_trial_is_ended_by_the_launcher(slots: Slots) -> None:
    fill(slots, "b", "two")
    (slots.path("b") / "bin/relief").write_text("#!/bin/sh\nexec sleep 30\n")
    slots.switch("b")
    environment = {**os.environ, "RELIEF_BASE": str(slots.base), "RELIEF_TRIAL": "0.2"}
    began = time.monotonic()
    assert subprocess.run(["sh", LAUNCH], env=environment, timeout=20).returncode == -signal.SIGTERM
    assert time.monotonic() - began < 10


def test_the_first_version_has_nothing_to_give_way_to_and_goes_on(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "relief")
    slots.base.mkdir()
    fill(slots, "a", "one")
    slots.switch("a")
    assert [start(slots) for _ in range(5)] == ["one"] * 5


def test_a_slot_that_is_half_written_is_never_started(slots: Slots) -> None:
    (slots.clear("b") / "bin").mkdir()
    with pytest.raises(BadBundle, match="no complete version"):
        slots.switch("b")
    (slots.base / "current").unlink()
    (slots.base / "current").symlink_to("slots/b")
    assert start(slots) == "one"
    assert slots.current == "a"


@pytest.mark.parametrize("junk", ["", "b", "b a", "b a many", "\0\0\0"])
def test_a_damaged_trial_file_stops_nothing(slots: Slots, junk: str) -> None:
    (slots.base / "trial").write_text(junk)
    assert slots.trial is None
    assert start(slots) == "one"


def test_the_running_version_is_never_overwritten_nor_the_one_to_go_back_to(slots: Slots) -> None:
    with pytest.raises(ValueError, match="is running"):
        slots.clear("a")
    fill(slots, "b", "two")
    slots.switch("b")
    with pytest.raises(BadBundle, match="still on trial"):
        slots.clear("a")


def test_an_operator_goes_back_and_a_single_version_cannot(slots: Slots) -> None:
    with pytest.raises(BadBundle, match="no other version"):
        slots.roll_back("by an operator")
    fill(slots, "b", "two")
    slots.switch("b")
    slots.confirm()
    assert slots.roll_back("by an operator") == "a"
    assert start(slots) == "one"


def test_watching_goes_back_when_time_is_up_and_stays_when_confirmed(slots: Slots) -> None:
    fill(slots, "b", "two")
    slots.switch("b")
    assert not watch(slots, 0.3)
    assert start(slots) == "one"
    fill(slots, "b", "two")
    slots.switch("b")
    threading.Timer(0.2, slots.confirm).start()
    assert watch(slots, 20)
    assert start(slots) == "two"


SWITCHER = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.test_flash_slots import fill
from device_runtime.slots import Slots
slots = Slots(Path(sys.argv[1]))
print("ready", flush=True)
n = 0
while True:
    n += 1
    fill(slots, slots.spare, f"version{n}")
    slots.switch(slots.spare)
    slots.confirm() if n % 2 else slots.roll_back("made to")
"""


@pytest.mark.timeout(240)
def test_sigkill_at_any_point_of_an_update_leaves_a_version_that_starts(slots: Slots) -> None:
    draw = random.Random(1)
    root = str(Path(__file__).parents[1])
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", SWITCHER, str(slots.base), root], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.wait()
        process.stdout.close()
        assert start(slots).startswith(("one", "version"))
        assert slots.manifest(slots.current or "") is not None


def test_every_cut_between_two_steps_of_a_switch_starts_a_complete_version(slots: Slots) -> None:
    """The same without luck: the switch is ended before each of its renames, links and syncs in turn."""
    import device_runtime.slots as module

    class Cut(Exception):
        pass

    done = 0
    for step in range(1, 40):
        left = step

        def count(real: object, *arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise Cut
            return real(*arguments)  # type: ignore[operator]

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "symlink_to"), (module, "sync")):
                real = getattr(owner, name)
                patch.setattr(owner, name, lambda *a, _real=real, **k: count(lambda *b: _real(*b, **k), *a))
            try:
                fill(slots, slots.spare, f"step{step}")
                slots.switch(slots.spare)
                slots.confirm()
                done += 1
            except Cut:
                pass
        assert start(slots).startswith(("one", "step"))
        if slots.trial:
            slots.confirm()
    assert done >= 5


def test_the_boards_torch_is_pinned_and_no_other_is_asked_for() -> None:
    pins = "numpy==1.26.4 \\\n    --hash=sha256:0\ntorch==2.10.0 \\\n    --hash=sha256:1\n"
    text = "# for x\nrelief-edge[infer,train]==0.1.0\n" + pins
    wanted, constraints = requirements(text, "2.5.0a0+872d972e41.nv24.8")
    assert wanted == "relief-edge[infer,train]==0.1.0"
    assert constraints.split() == ["numpy==1.26.4", "torch==2.5.0a0+872d972e41.nv24.8"]
    assert requirements(text, "")[1].split() == ["numpy==1.26.4", "torch==2.10.0"]
    assert requirements("relief-edge[infer]==0.1.0\n", "2.5.0")[0] == "relief-edge[infer,train]==0.1.0"


# -- an announced bundle is fetched ------------------------------------------------------------------------------


class Ranged(SimpleHTTPRequestHandler):
    """Serves ranges, and breaks off after `limit` bytes of each answer."""

    limit = 1 << 30

    def do_GET(self) -> None:
        body = Path(self.translate_path(self.path)).read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        self.wfile.write(body[begin : begin + self.limit])

    def log_message(self, *_: object) -> None: ...


def served(folder: Path, limit: int) -> ThreadingHTTPServer:
    handler = type("Limited", (Ranged,), {"limit": limit})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize("limit", [1 << 30, 40_000])
def test_a_download_goes_on_where_it_broke_off(tmp_path: Path, limit: int) -> None:
    import hashlib

    body = random.Random(2).randbytes(100_000)
    (tmp_path / "bundle.tar").write_bytes(body)
    server = served(tmp_path, limit)
    url = f"http://127.0.0.1:{server.server_port}/bundle.tar"
    try:
        got = fetch(url, tmp_path / "part", len(body), hashlib.sha256(body).hexdigest())
        assert got.read_bytes() == body
        with pytest.raises(BadBundle, match="sha256 that was announced"):
            fetch(url, tmp_path / "other", len(body), "0" * 64)
        assert not (tmp_path / "other").exists()
        with pytest.raises(BadBundle, match="make room first"):
            fetch(url, tmp_path / "huge", 1 << 60, "0" * 64)
    finally:
        server.shutdown()
        server.server_close()


def test_the_manifest_of_a_slot_is_written_last(slots: Slots) -> None:
    path = slots.clear("b")
    assert not (path / MANIFEST).exists()
    assert slots.manifest("b") is None
