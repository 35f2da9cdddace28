"""Large files over HTTP on bad networks: resumed where they broke off, complete or not there."""

from __future__ import annotations

import errno
import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sensors.recording import DataError

Progress = Callable[[int, int], None]  # bytes that are here, bytes in all (0: not known)

CHUNK = 1 << 18
TIMEOUT_S = 30.0
ATTEMPTS = 5  # in a row that brought nothing
_LENGTH = "length "
PAUSE_S = 0.5  # before the second attempt, doubled for each further one


class Unreachable(Exception):
    """No server gave the file; `reasons` has one line for each address."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def download(urls: tuple[str, ...], to: Path, progress: Progress = lambda here, total: None) -> None:
    """Fetch the first address that works into `to`.

    What has arrived waits in `<to>.part` and is continued by the next call, if the server still has the same file.
    Raises Unreachable, or DataError where the disk is full or cannot be written.
    """
    reasons = []
    for url in urls:
        try:
            _fetch(url, to, progress)
            return
        except _Refused as error:
            reasons.append(f"{url}: {error}")
    raise Unreachable(reasons)


class _Refused(Exception):
    """This address will not do."""


def _fetch(url: str, to: Path, progress: Progress) -> None:
    part, tag = to.with_name(to.name + ".part"), to.with_name(to.name + ".part.tag")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            done = _once(url, part, tag, progress)
            if done:
                part.replace(to)
                tag.unlink(missing_ok=True)
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429) and error.code < 500:
                raise _Refused(f"HTTP {error.code} {error.reason}") from None
            reason = f"HTTP {error.code} {error.reason}"
        except (http.client.HTTPException, OSError) as error:  # URLError, resets and time-outs are OSErrors
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        gained = part.exists() and part.stat().st_size > before
        failures = 1 if gained else failures + 1
        if failures >= ATTEMPTS:
            raise _Refused(reason)
        time.sleep(PAUSE_S * 2 ** (failures - 1))


def _once(url: str, part: Path, tag: Path, progress: Progress) -> bool:
    """One connection; whether it brought the last byte."""
    known = tag.read_text() if tag.exists() else ""
    here = part.stat().st_size if part.exists() and known else 0
    request = urllib.request.Request(url, headers={"User-Agent": "relief"})
    if here:
        request.add_header("Range", f"bytes={here}-")
        if not known.startswith(_LENGTH):
            request.add_header("If-Range", known)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        tag.unlink()  # ours is as long as the file or longer: begin anew
        return False
    with response:
        if response.status != 206:
            here = 0
        length = int(response.headers.get("Content-Length") or 0)
        total = here + length if length else 0
        mark = _mark(response, total)
        if here and known.startswith(_LENGTH) and mark != known:
            tag.unlink()  # another file by now: begin anew
            return False
        _write(tag, mark)
        with _opened(part, "ab" if here else "wb") as out:
            while data := _read(response):
                _put(out, data, part)
                here += len(data)
                progress(here, total)
    return here == total if total else True


def _mark(response: http.client.HTTPResponse, total: int) -> str:
    """What tells this version of the file from others: a strong tag, its date, else its length."""
    tag = response.headers.get("ETag") or ""
    strong = "" if tag.startswith("W/") else tag
    return strong or response.headers.get("Last-Modified") or f"{_LENGTH}{total}"


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial


def _opened(file: Path, mode: str) -> io.FileIO:
    try:
        return io.FileIO(file, mode)
    except OSError as error:
        raise disk_error(file, error) from None


def _put(out: io.FileIO, data: bytes, file: Path) -> None:
    try:
        view = memoryview(data)
        while view:
            view = view[out.write(view) :]
    except OSError as error:
        raise disk_error(file, error) from None


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise disk_error(file, error) from None


def disk_error(file: Path, error: OSError) -> DataError:
    """What to do about a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DataError(file, "the disk is full; free some space and run this again: what is here is kept")
    return DataError(file, f"cannot be written ({error.strerror}), expected a folder that can")
