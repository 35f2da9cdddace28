"""Parsed recordings kept as npy files: text is read once. A cache may vanish at any time and never be missed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
FORMAT = 2  # raised when what a reader stores changes

CONTENTS = "contents.json"  # names of the arrays and the CRC-32 of each file; written last


def cache_root() -> Path:
    """RELIEF_CACHE, else XDG_CACHE_HOME/relief, else ~/.cache/relief."""
    if named := os.environ.get("RELIEF_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "relief"


def key_of(reader: str, files: Iterable[Path], *more: object) -> str:
    """Names one parse of these files as they are now: path, size and time of change each."""
    digest = hashlib.sha256(repr((FORMAT, reader, more)).encode())
    for file in files:
        about = file.stat()
        digest.update(repr((str(file.resolve()), about.st_size, about.st_mtime_ns)).encode())
    return f"{reader}-{digest.hexdigest()[:24]}"


def cached(key: str, make: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> Arrays:
    """What `make` returns, memory-mapped from the cache where it was made before.

    An unwritable or damaged cache costs time, never the recording.
    """
    with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        folder = cache_root() / key
        try:
            return _load(folder)
        except (OSError, ValueError, EOFError):
            arrays = dict(make())
            _store(folder, arrays)
            return arrays
    return dict(make())


def _load(folder: Path) -> Arrays:
    """ValueError where a file is not what was written: a power cut leaves files of the right size and full of zeros."""
    sums = json.loads((folder / CONTENTS).read_text())
    if not isinstance(sums, dict):
        raise ValueError(f"{folder / CONTENTS}: expected names and sums")
    for name, crc in sums.items():
        if _crc(folder / f"{name}.npy") != crc:
            raise ValueError(f"{folder / name}.npy is damaged")
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in sums}


def _crc(file: Path) -> int:
    """Read in pieces: what is read through a memory map would count as this process's memory."""
    crc = 0
    with file.open("rb", buffering=0) as stream:
        while data := stream.read(1 << 18):
            crc = zlib.crc32(data, crc)
    return crc


def _store(folder: Path, arrays: Arrays) -> None:
    """Write beside and rename: two processes that parse the same file at once do no harm."""
    with suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, values in arrays.items():
                np.save(beside / f"{name}.npy", values, allow_pickle=False)
            (beside / CONTENTS).write_text(json.dumps({name: _crc(beside / f"{name}.npy") for name in arrays}))
            if folder.exists():  # it is there but could not be read
                shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
