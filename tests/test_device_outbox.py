"""The outbox loses nothing that was kept: kills, torn files, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.outbox import Outbox

ROOT = Path(__file__).parents[1]


def test_an_update_is_there_after_a_restart_in_the_order_it_came(tmp_path):
    first = Outbox(tmp_path)
    for n in (3, 1, 2):
        first.put(f"u{n}", f"1.{n}", bytes([n]) * 100)
    again = Outbox(tmp_path)
    assert [(e.update, e.assignment) for e in again.entries] == [("u3", "1.3"), ("u1", "1.1"), ("u2", "1.2")]
    assert again.body("u2") == b"\2" * 100


def test_what_was_answered_is_gone_for_good(tmp_path):
    box = Outbox(tmp_path)
    box.put("u", "1.1", b"x")
    box.remove("u")
    box.remove("u")
    assert len(Outbox(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_same_update_twice_is_kept_once(tmp_path):
    box = Outbox(tmp_path)
    box.put("u", "1.1", b"first")
    box.put("u", "1.1", b"second")
    assert (len(box), box.body("u")) == (1, b"first")


def test_the_oldest_gives_way_when_there_is_no_room(tmp_path):
    box = Outbox(tmp_path, max_bytes=250)
    assert box.put("a", "1.1", b"a" * 100) == []
    assert box.put("b", "1.2", b"b" * 100) == []
    assert box.put("c", "1.3", b"c" * 100) == ["a"]
    assert [e.update for e in Outbox(tmp_path).entries] == ["b", "c"]
    assert box.size == 200


def test_a_single_update_is_kept_however_large_it_is(tmp_path):
    box = Outbox(tmp_path, max_bytes=10)
    assert box.put("a", "1.1", b"a" * 100) == []
    assert box.body("a") == b"a" * 100


@settings(max_examples=60)
@given(cut=st.integers(0, 400), flip=st.integers(0, 7))
def test_a_torn_or_damaged_file_is_never_taken_for_an_update(tmp_path_factory, cut, flip):
    folder = tmp_path_factory.mktemp("box")
    Outbox(folder).put("good", "1.1", b"g" * 50)
    Outbox(folder).put("bad", "1.2", b"b" * 50)
    bad = max(folder.glob("*.update"), key=lambda p: b"bad" in p.read_bytes())
    whole = bytearray(bad.read_bytes())
    at = cut % len(whole)
    damaged = bytes(whole[:at]) if cut % 2 else bytes((*whole[:at], whole[at] ^ (1 << flip), *whole[at + 1 :]))
    bad.write_bytes(damaged)
    box = Outbox(folder)
    assert [e.update for e in box.entries] == ["good"]
    assert box.torn == 1
    assert Outbox(folder).torn == 0


def test_a_file_that_is_damaged_while_we_run_is_noticed_when_it_is_read(tmp_path):
    box = Outbox(tmp_path)
    box.put("u", "1.1", b"x" * 50)
    file = next(tmp_path.glob("*.update"))
    box.put("v", "1.2", b"y")  # only the newest is still in memory
    file.write_bytes(b"nothing")
    assert box.body("u") is None
    assert [e.update for e in box.entries] == ["v"]


def test_only_what_stays_is_synced_and_only_once(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())))
    box = Outbox(tmp_path)
    box.put("u", "1.1", b"x")
    box.put("v", "1.2", b"y")
    box.remove("u")
    assert synced == []
    box.secure()
    assert synced == [str(next(tmp_path.glob("*.update"))), str(tmp_path)]
    box.secure()
    assert len(synced) == 2


def test_a_disk_that_fails_while_updates_are_made_durable_is_told_and_tried_again(tmp_path, monkeypatch):
    def fails(handle):
        raise OSError(5, "Input/output error")

    box = Outbox(tmp_path)
    box.put("u", "1.1", b"x")
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", fails)
        box.secure()
    assert "Input/output error" in box.problem
    box.secure()
    assert box.problem == ""


def test_a_half_written_file_of_a_killed_process_is_swept_away(tmp_path):
    (tmp_path / "abc.tmp").write_bytes(b"half")
    assert len(Outbox(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_any_moment_leaves_only_whole_updates(tmp_path):
    script = (
        "import sys; from pathlib import Path; from device_runtime.outbox import Outbox\n"
        "box, n = Outbox(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    n += 1\n"
        "    box.put(f'u{n}', f'1.{n}', bytes([n % 256]) * 200_000)\n"
        "    print(n, flush=True)\n"
        "    if n > 20: box.remove(f'u{n - 20}')\n"
    )
    for wait in (1, 3, 9):
        folder = tmp_path / str(wait)
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(wait)]
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
        child.stdout.close()
        child.wait()
        box = Outbox(folder)
        here = {int(e.update[1:]) for e in box.entries}
        assert set(told) <= here, "an update that was kept is not there"
        assert box.torn == 0
        for e in box.entries:
            n = int(e.update[1:])
            assert box.body(e.update) == bytes([n % 256]) * 200_000
        assert not list(folder.glob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_update_stays_in_memory_until_there_is_room(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 200_000)
    box = Outbox(small_disk / "box")
    box.put("u", "1.1", b"x" * 100_000)
    assert "No space left on device" in box.problem
    assert "make room" in box.problem
    assert box.body("u") == b"x" * 100_000
    assert not list((small_disk / "box").glob("*"))
    ballast.unlink()
    box.put("v", "1.2", b"y" * 1000)
    assert box.problem == ""
    assert {e.update for e in Outbox(small_disk / "box").entries} == {"u", "v"}


def test_an_update_is_written_when_there_is_room_again_though_no_other_comes(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 200_000)
    box = Outbox(small_disk / "box")
    box.put("u", "1.1", b"x" * 100_000)
    box.secure()
    assert "No space left on device" in box.problem
    ballast.unlink()
    box.secure()
    assert box.problem == ""
    assert Outbox(small_disk / "box").body("u") == b"x" * 100_000


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    box = Outbox(tmp_path / "file" / "outbox")
    assert str(tmp_path / "file") in box.problem
    box.put("u", "1.1", b"x")
    assert box.body("u") == b"x"


def test_the_clock_of_the_machine_plays_no_part_in_the_order(tmp_path):
    box = Outbox(tmp_path)
    box.put("a", "1.1", b"a")
    box.put("b", "1.2", b"b")
    for n, path in enumerate(sorted(tmp_path.glob("*.update"))):
        os.utime(path, (1000 - n, 1000 - n))
    assert [e.update for e in Outbox(tmp_path).entries] == ["a", "b"]


def test_telemetry_waits_in_order_and_gives_way_before_any_update(tmp_path):
    box = Outbox(tmp_path, max_bytes=350)
    box.put("a", "1.1", b"a" * 100)
    for n in range(5):
        box.remember(bytes([n]) * 50)
    assert box.size == 350
    box.put("b", "1.2", b"b" * 100)
    assert box.forgotten == 2
    assert [e.update for e in box.entries] == ["a", "b"]
    assert [kept[0] for kept in box.recall()] == [2, 3, 4]
    assert box.recall() == []
    assert box.size == 200


def test_telemetry_never_touches_the_disk_nor_grows_without_bound(tmp_path):
    box = Outbox(tmp_path)
    for _ in range(3000):
        box.remember(b"t" * 1000)
    assert box.size <= 1 << 20
    assert list(tmp_path.iterdir()) == []
