"""The model's versions that a device has adopted, on its own disk: the one in use, and those to go back to.

    <state>/model/v12       blocks with their manifests, behind the SHA-256 of it all
    <state>/model/in_use    [7, 12]: it predicts by 12, and by 7 after a roll-back

So a device that lost power predicts by what it had adopted before it has met any broker.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgpack

from device_runtime.downloads import Held
from protocol.errors import ProtocolError
from protocol.messages import Manifest, decode

DIGEST = 32  # bytes


class Shelf:
    """The folder of one device. What is damaged counts as not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "model"

    def put(self, version: int, blocks: Mapping[str, Held]) -> None:
        """Keep a version, durably. OSError where the disk does not take it."""
        body = msgpack.packb({name: [held.manifest.encode(), held.data] for name, held in blocks.items()})
        self._write(f"v{version}", hashlib.sha256(body).digest() + body)

    def get(self, version: int) -> dict[str, Held] | None:
        """The blocks of a version; None where they are not there whole."""
        try:
            content = (self._folder / f"v{version}").read_bytes()
            digest, body = content[:DIGEST], content[DIGEST:]
            if hashlib.sha256(body).digest() != digest:
                return None
            return {name: Held(decode(Manifest, said), data) for name, (said, data) in msgpack.unpackb(body).items()}
        except (OSError, ValueError, ProtocolError):
            return None

    def point(self, versions: Sequence[int]) -> None:
        """Write down which version is in use, the last, and which were before it, and drop all others. OSError."""
        self._write("in_use", json.dumps(list(versions)).encode())
        kept = {f"v{version}" for version in versions}
        for file in self._folder.glob("v*"):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def in_use(self) -> list[int]:
        """The version in use as the last, those before it before it; empty where none was ever adopted."""
        try:
            return [int(version) for version in json.loads((self._folder / "in_use").read_bytes())]
        except (OSError, ValueError, TypeError):
            return []

    def _write(self, name: str, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._folder / f".{name}.new"
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(self._folder / name)
        finally:
            aside.unlink(missing_ok=True)
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
