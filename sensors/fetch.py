"""Gets a published data set into a folder: downloaded or brought by hand, unpacked, every file checked."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from sensors.download import Progress, Unreachable, disk_error, download
from sensors.locate import MADE_UP
from sensors.published import File, Published
from sensors.recording import DataError

Say = Callable[[str], None]
_CHUNK = 1 << 20


def fetch(
    published: Published, folder: Path, progress: Progress = lambda here, total: None, say: Say = lambda line: None
) -> list[Path]:
    """The data set's files below `folder`, complete and checked; nothing is there under its name before that.

    Files that are whole already are left alone; a zip file that somebody put into `folder` is used. Raises DataError
    for wrong sums, full disks, and where there is no network: then it says what to download and where to put it.
    """
    missing = [file for file in published.files if not _whole(folder / file.path, file)]
    if not missing:
        say("all files are here already")
        return [folder / file.path for file in published.files]
    _make(folder)
    brought = _brought(published, folder)
    archive = brought or folder / f"{published.name}.zip"
    if not brought:
        _room(folder, published.size)
        try:
            download(published.urls, archive, progress)
        except Unreachable as error:
            raise DataError(folder, _by_hand(published, folder, error)) from None
    say(f"unpacking {archive.name}")
    _unpack(published, archive, folder)
    (folder / MADE_UP).unlink(missing_ok=True)  # made-up files of the same names have been replaced
    if not brought:
        archive.unlink()
    return [folder / file.path for file in published.files]


def _by_hand(published: Published, folder: Path, error: Unreachable) -> str:
    return (
        f"the download failed ({error}). Without network here: get {published.urls[0]} (from {published.page}) on "
        f"another machine, put the zip file into {folder} and run `relief data fetch {published.name}` again"
    )


def _whole(path: Path, file: File) -> bool:
    if not path.is_file() or (file.size and path.stat().st_size != file.size):
        return False
    if not file.sha256:
        return path.stat().st_size > 0
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while data := stream.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest() == file.sha256


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from None


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        scale, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        raise DataError(folder, f"needs {needed / scale:.1f} {unit} of disk, {free / scale:.1f} {unit} are free")


def _brought(published: Published, folder: Path) -> Path | None:
    """A zip file in the folder that holds the data set, itself or in a zip file inside."""
    for candidate in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(candidate) as packed:
                names = packed.namelist()
        except (zipfile.BadZipFile, OSError):
            continue
        if any(_target(published, name) for name in names) or any(name.endswith(".zip") for name in names):
            return candidate
    return None


def _target(published: Published, member: str) -> str | None:
    """Where a member belongs below the folder; made from our own template, never from the member's path."""
    match = re.search(rf"(?:^|/){published.pattern}\Z", member)
    return match.expand(published.place) if match else None


def _unpack(published: Published, archive: Path, folder: Path) -> None:
    """All files beside their places first, checked, then moved in."""
    beside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
    try:
        wanted = {file.path: file for file in published.files}
        _extract(published, archive, beside, wanted, nested=True)
        if wanted:
            first = next(iter(wanted))
            raise DataError(archive, f"lacks {len(wanted)} files, among them {first}; expected {published.title}")
        for file in published.files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (beside / file.path).replace(folder / file.path)
    except zipfile.BadZipFile as error:
        raise DataError(archive, f"is no whole zip file ({error}); delete it and run this again") from None
    except OSError as error:
        raise disk_error(folder, error) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _extract(published: Published, archive: Path, beside: Path, wanted: dict[str, File], nested: bool) -> None:
    """Take the wanted members out, and from a zip file inside where the outer one has none."""
    with zipfile.ZipFile(archive) as packed:
        members = {target: name for name in packed.namelist() if (target := _target(published, name)) in wanted}
        inner = [name for name in packed.namelist() if name.endswith(".zip")]
        inside = [packed.getinfo(name) for name in (members.values() or inner)]
        _room(beside.parent, sum(info.file_size for info in inside))
        for target, name in members.items():
            if target is not None:
                with packed.open(name) as stream:
                    _checked(stream, beside / target, wanted.pop(target), archive)
        if not members and nested:
            for number, name in enumerate(inner):
                copy = beside / f"{number}.zip"
                with packed.open(name) as stream:
                    _checked(stream, copy, File(name), archive)
                _extract(published, copy, beside, wanted, nested=False)
                copy.unlink()


def _checked(stream: IO[bytes], to: Path, file: File, archive: Path) -> None:
    """Copy a member; DataError where its bytes are not the published ones."""
    to.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with to.open("wb") as out:
        while data := stream.read(_CHUNK):
            digest.update(data)
            out.write(data)
    if file.size and to.stat().st_size != file.size:
        raise DataError(f"{archive}!{file.path}", f"{to.stat().st_size} bytes, expected {file.size}")
    if file.sha256 and digest.hexdigest() != file.sha256:
        raise DataError(f"{archive}!{file.path}", f"sha256 {digest.hexdigest()}, expected {file.sha256}")
