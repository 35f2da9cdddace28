"""Fetching from a real HTTP server that cuts, lies and forgets; onto disks that are full; without network."""

from __future__ import annotations

import hashlib
import io
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import sensors.download
from sensors.fetch import fetch
from sensors.published import MHEALTH, PAMAP2, PUBLISHED, File, Published
from sensors.recording import DataError

FILES = {f"Protocol/subject10{n}.dat": bytes([n]) * 40_000 + b"\n" for n in range(1, 4)}


def packed(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


WHOLE = packed({"readme.pdf": b"%PDF", **{f"PAMAP2_Dataset/{name}": data for name, data in FILES.items()}})


@dataclass
class Server:
    """Serves `content` and does harm to the requests as `harm` says, one entry each; "" is none."""

    content: bytes = WHOLE
    harm: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    tag: str = '"one"'
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()
    monkeypatch.setattr(sensors.download, "PAUSE_S", 0.01)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            harm = served.harm.pop(0) if served.harm else ""
            asked = self.headers.get("Range")
            served.ranges.append(asked)
            if harm.isdigit():
                self.send_error(int(harm))
                return
            first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if self.headers.get("If-Range") not in (None, served.tag) or harm == "no ranges":
                first = 0
            if first >= len(served.content):
                self.send_error(416)
                return
            body = served.content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(body)))
            if served.tag:
                self.send_header("ETag", served.tag)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if harm == "cut" else body)
            if harm == "cut":
                self.connection.close()

        def log_message(self, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a connection that we cut ourselves

    listening = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{listening.server_port}/some.zip"
    yield served
    listening.shutdown()
    thread.join()
    listening.server_close()


def published(*urls: str) -> Published:
    files = tuple(File(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in FILES.items())
    return replace(PAMAP2, urls=urls, files=files)


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_everything_is_fetched_checked_unpacked_and_nothing_else_left(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = fetch(published(server.url), tmp_path / "pamap2", lambda here, total: seen.append((here, total)))
    assert [file.read_bytes() for file in found] == list(FILES.values())
    assert left(tmp_path / "pamap2") == sorted(FILES)
    assert seen[-1] == (len(WHOLE), len(WHOLE))


def test_what_is_here_already_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch(published(server.url), tmp_path)
    said: list[str] = []
    fetch(published(server.url), tmp_path, say=said.append)
    assert len(server.ranges) == 1 and said == ["all files are here already"]


@pytest.mark.parametrize("tag", ['"one"', 'W/"weak"', ""])
def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path, tag: str) -> None:
    server.harm, server.tag = ["cut", "cut", "503", "cut"], tag
    fetch(published(server.url), tmp_path)
    asked = [int(r.removeprefix("bytes=").removesuffix("-")) for r in server.ranges if r]
    assert len(asked) == 4 and asked == sorted(asked) and asked[0] > 0
    assert left(tmp_path) == sorted(FILES)


def test_a_download_that_was_given_up_is_continued_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.harm = ["cut", *["500"] * 5]
    with pytest.raises(DataError, match="HTTP 500"):
        fetch(published(server.url), tmp_path)
    assert "pamap2.zip.part" in left(tmp_path)
    fetch(published(server.url), tmp_path)
    assert server.ranges[-1] is not None
    assert left(tmp_path) == sorted(FILES)


@pytest.mark.parametrize("tag", ['"one"', ""])
def test_a_file_that_changed_meanwhile_is_begun_anew(server: Server, tmp_path: Path, tag: str) -> None:
    server.tag, server.content, server.harm = tag, WHOLE + b" ", ["cut", *["500"] * 5]
    with pytest.raises(DataError):
        fetch(published(server.url), tmp_path)
    server.content, server.tag = WHOLE, tag and '"two"'
    fetch(published(server.url), tmp_path)
    assert left(tmp_path) == sorted(FILES)


def test_a_server_without_ranges_is_read_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.harm = ["cut", "no ranges"]
    fetch(published(server.url), tmp_path)
    assert left(tmp_path) == sorted(FILES)


def test_a_second_address_helps_when_the_first_does_not_know_the_file(server: Server, tmp_path: Path) -> None:
    server.harm = ["404"]
    fetch(published(server.url, server.url), tmp_path)
    assert len(server.ranges) == 2 and left(tmp_path) == sorted(FILES)


def test_zip_files_inside_zip_files_are_opened(server: Server, tmp_path: Path) -> None:
    server.content = packed({"readme.pdf": b"%PDF", "PAMAP2_Dataset.zip": WHOLE})
    fetch(published(server.url), tmp_path)
    assert left(tmp_path) == sorted(FILES)


def _others() -> dict[str, bytes]:
    return {name: data for name, data in FILES.items() if "101" not in name}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (packed({"Protocol/subject101.dat": b"x" * 40_001, **_others()}), "subject101.dat: sha256 .*, expected "),
        (packed({"Protocol/subject101.dat": b"x", **_others()}), "subject101.dat: 1 bytes, expected 40001"),
        (packed(_others()), "lacks 1 files, among them Protocol/subject101.dat"),
        (packed({"../../Protocol/subject101.dat.txt": b"x"}), "lacks 3 files"),
        (WHOLE[:-30], "is no whole zip file"),
        (b"<html>Sign in</html>", "is no whole zip file"),
    ],
)
def test_wrong_content_is_named_and_nothing_is_put_in_place(
    server: Server, tmp_path: Path, content: bytes, expected: str
) -> None:
    server.content = content
    with pytest.raises(DataError, match=expected) as caught:
        fetch(published(server.url), tmp_path / "pamap2")
    assert "\n" not in str(caught.value)
    assert not any(name.endswith(".dat") for name in left(tmp_path))


def test_members_cannot_leave_the_folder(server: Server, tmp_path: Path) -> None:
    server.content = packed({f"../../../{name}": data for name, data in FILES.items()})
    fetch(published(server.url), tmp_path / "a" / "b")
    assert left(tmp_path) == sorted(f"a/b/{name}" for name in FILES)


def test_without_network_it_says_what_to_download_and_where_to_put_it(tmp_path: Path, server: Server) -> None:
    nowhere = "http://127.0.0.1:9/pamap2.zip"
    with pytest.raises(DataError) as caught:
        fetch(published(nowhere), tmp_path)
    message = str(caught.value)
    assert nowhere in message and str(tmp_path) in message and PAMAP2.page in message
    (tmp_path / "by hand.zip").write_bytes(packed({"PAMAP2_Dataset.zip": WHOLE}))
    fetch(published(nowhere), tmp_path)
    assert left(tmp_path) == sorted(["by hand.zip", *FILES])


def test_a_full_disk_is_said_and_what_is_here_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pamap2.zip.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="the disk is full; free some space"):
        fetch(published(server.url), tmp_path)
    (tmp_path / "pamap2.zip.part").unlink()
    fetch(published(server.url), tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (zipfile.ZIP_STORED, "the disk is full; free some space"),
        (zipfile.ZIP_DEFLATED, r"needs 0\.4 MB of disk, 0\.3 MB"),
    ],
    ids=["downloading", "unpacking"],
)
def test_a_disk_that_fills_up_is_said_and_with_more_space_the_fetch_goes_on(
    server: Server, full_disk: Path, how: int, said: str
) -> None:
    big = {"Protocol/subject101.dat": bytes(200_000), "Protocol/subject102.dat": bytes(200_000)}
    server.content = packed(big, how)
    files = tuple(File(name, hashlib.sha256(data).hexdigest()) for name, data in big.items())
    wanted = replace(published(server.url), files=files)  # sizes unknown: the download is not refused beforehand
    with pytest.raises(DataError, match=said):
        fetch(wanted, full_disk / "pamap2")
    assert not (full_disk / "pamap2" / "Protocol").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(full_disk)], check=True)
    fetch(wanted, full_disk / "pamap2")
    assert set(big) <= set(left(full_disk / "pamap2"))
    if how == zipfile.ZIP_DEFLATED:
        assert server.ranges == [None]  # what was downloaded before the disk was too small is used


def test_a_disk_that_is_too_small_is_said_before_the_download(server: Server, tmp_path: Path) -> None:
    huge = replace(published(server.url), files=(File("Protocol/subject101.dat", "0" * 64, 10**16),))
    with pytest.raises(DataError, match=r"needs 10000000\.0 GB of disk, .* are free"):
        fetch(huge, tmp_path)
    assert server.ranges == []


def test_a_folder_that_cannot_be_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        fetch(published(server.url), tmp_path / "file" / "pamap2")


def test_the_published_sets_know_all_their_files() -> None:
    assert len(PAMAP2.files) == 9 and 1.2e9 < PAMAP2.size < 1.7e9
    assert len(MHEALTH.files) == 10 and len({f.sha256 for f in MHEALTH.files}) == 10
    assert len(PUBLISHED["dsads"].files) == 19 * 8 * 60
    assert PAMAP2.files[-1].path == "Protocol/subject109.dat"
    assert MHEALTH.files[-1].path == "MHEALTHDATASET/mHealth_subject10.log"
