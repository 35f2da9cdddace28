"""Files of a data set where they lie: in a folder, or inside the zip file that is distributed."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sensors.recording import DataError


class Archive:
    """The members of a zip file or folder whose names match `pattern`, in a fixed order.

    pattern    searched at the end of the member's path, so that any leading folder will do; hidden ones are passed over
    expected   said where nothing matches, e.g. "files like data/a01/p1/s01.txt"
    """

    def __init__(self, path: Path, pattern: str, expected: str) -> None:
        self.path = path
        matcher = re.compile(rf"(?:^|.*/)(?:{pattern})\Z")
        self.members: dict[str, re.Match[str]] = {}
        try:
            names = self._names()
        except FileNotFoundError:
            raise DataError(path, f"no such file or folder, expected a zip file or folder with {expected}") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(path, f"cannot be read ({error}), expected a zip file or folder with {expected}") from None
        for name in names:
            if (match := matcher.match(name)) and not any(level.startswith(".") for level in name.split("/")):
                self.members[name] = match
        if not self.members:
            inside = next((name for name in names if name.endswith(".zip")), None)
            hint = f"; unpack {inside} first, or let `relief data fetch` do it" if inside else ""
            raise DataError(path, f"holds none of the recordings, expected {expected}{hint}")

    def _names(self) -> list[str]:
        if self.path.is_dir():
            return sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        with zipfile.ZipFile(self.path) as packed:
            return sorted(packed.namelist())

    def files(self, members: list[str]) -> list[Path]:
        """The files on disk that hold these members: what a cache must watch."""
        return [self.path / m for m in members] if self.path.is_dir() else [self.path]

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Open once, read many members. Raises DataError naming the member for damaged ones."""
        if self.path.is_dir():
            yield Reading(self.path, None)
        else:
            with zipfile.ZipFile(self.path) as packed:
                yield Reading(self.path, packed)


class Reading:
    """An archive that is open."""

    def __init__(self, path: Path, packed: zipfile.ZipFile | None) -> None:
        self._path, self._packed = path, packed

    def label(self, member: str) -> str:
        """How messages call the member."""
        return f"{self._path}{'!' if self._packed else '/'}{member}"

    @contextmanager
    def open(self, member: str) -> Iterator[IO[bytes]]:
        """The member as a stream of bytes."""
        try:
            with self._packed.open(member) if self._packed else (self._path / member).open("rb") as stream:
                yield stream
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise DataError(self.label(member), f"cannot be read ({error}), expected an undamaged file") from None

    def read(self, member: str) -> bytes:
        """All bytes of the member."""
        with self.open(member) as stream:
            return stream.read()
