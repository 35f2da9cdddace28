"""Registered versions of the model: whole, with their scores, for devices to predict by.

    <run>/versions/checkpoint-00000012/    the model after round 12, as `relief export` takes it
    <run>/versions/scores.json             version -> when it was registered, its digest and its scores
    <run>/versions/published.json          the versions that devices can get now, the newest last

A version is the round after which it was committed. What is not worth keeping goes by itself: there stay the newest,
the best by its score, and those that devices can get.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.checkpoint import Checkpoint, CheckpointError, load, save
from coordinator.segment import sync_directory
from models.partition import Vector
from models.spec import ModelSpec

KEPT = 8  # newest versions
OFFERED = 2  # versions that devices can get at a time: the one that is adopted, and the one before it
BEST_BY = ("held_out", "in_subject")  # the first of these that a version has says how good it is


class NoVersion(ValueError):
    """A version that is not registered, or not readable any more; the text says which there are."""


@dataclass
class Version:
    """One registered version. `scores` by name, 0 to 1, empty where nobody has evaluated it; `at` wall clock."""

    version: int
    at: float
    digest: str
    loss: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """What it is compared by."""
        return next((self.scores[name] for name in BEST_BY if name in self.scores), None)


def block_name(block: str, version: int) -> str:
    """Under which name a block of a registered version is published: no device's by accident, read by every device."""
    return f"{block}.v{version}"


class Versions:
    """The registry of one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[int, Version] = {}
        self.problem = ""  # why scores are not on disk
        self.published: list[int] = []
        self._late: dict[int, dict[str, float]] = {}  # scores that came before their version was registered
        for version, plain in _read(folder / "scores.json", {}).items():
            if self._path(int(version)).is_dir():
                self.known[int(version)] = Version(**plain)
        self.published = [v for v in _read(folder / "published.json", []) if v in self.known]

    def register(
        self,
        version: int,
        blocks: Mapping[str, Vector],
        versions: Mapping[str, int],
        spec: ModelSpec,
        base: Mapping[str, Vector],
        scales: Mapping[str, tuple[list[float], list[float]]],
        *,
        loss: float = 0.0,
    ) -> None:
        """Write version `version` down, durably; nothing happens where it is there already. OSError: a full disk."""
        if version in self.known or version < 1:
            return
        meta = {"scales": {m: [center, width] for m, (center, width) in scales.items()}}
        plain = {block: np.ascontiguousarray(vector) for block, vector in blocks.items()}
        save(self.folder, version, plain, spec, meta, base=base, versions=versions, keep=1 << 30)
        scores = self._late.pop(version, {})
        self.known[version] = Version(version, time.time(), _digest(plain), loss, scores)
        self._thin()
        self._write_scores()

    def score(self, version: int, scores: Mapping[str, float]) -> None:
        """What the evaluation said of a version, before or after it was registered; a full disk is a `problem`."""
        if version in self.known:
            self.known[version].scores = dict(scores)
            try:
                self._write_scores()
            except OSError as error:  # the next that are written bring these along
                self.problem = str(error)
        else:
            self._late[version] = dict(scores)
            while len(self._late) > KEPT:
                del self._late[min(self._late)]

    def get(self, version: object) -> Checkpoint:
        """A registered version whole. NoVersion where it is not there, or damaged."""
        if not isinstance(version, int) or version not in self.known:
            there = ", ".join(map(str, sorted(self.known))) or "none yet"
            raise NoVersion(f"version {version} is not registered; there are: {there}")
        try:
            found = load(self._path(version))
        except CheckpointError as error:
            raise NoVersion(str(error)) from None
        if found.version != version:
            raise NoVersion(f"version {version} cannot be read: {'; '.join(found.passed_over)}")
        return found

    def publish(self, version: int) -> list[int]:
        """Note that devices can get it from now on; the versions that they cannot get any more."""
        if self.published[-1:] == [version]:
            return []
        self.published = [v for v in self.published if v != version] + [version]
        gone, self.published = self.published[:-OFFERED], self.published[-OFFERED:]
        self._write("published.json", self.published)
        return gone

    def table(self) -> list[dict[str, Any]]:
        """All versions as plain values, the newest first."""
        best = self._best()
        return [
            {**asdict(one), "score": one.score, "best": v == best, "published": v in self.published}
            for v, one in sorted(self.known.items(), reverse=True)
        ]

    def _best(self) -> int | None:
        scored = {v: one.score for v, one in self.known.items() if one.score is not None}
        return max(scored, key=lambda v: (scored[v], v)) if scored else None

    def _thin(self) -> None:
        keep = {*sorted(self.known)[-KEPT:], *self.published, self._best()}
        for version in [v for v in self.known if v not in keep]:
            del self.known[version]
            shutil.rmtree(self._path(version), ignore_errors=True)

    def _path(self, version: int) -> Path:
        return self.folder / f"checkpoint-{version:08d}"

    def _write_scores(self) -> None:
        self._write("scores.json", {str(v): asdict(one) for v, one in self.known.items()})
        self.problem = ""

    def _write(self, name: str, plain: object) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{name}.new"
        with aside.open("w") as file:
            json.dump(plain, file)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(self.folder / name)
        sync_directory(self.folder)


def _read(path: Path, otherwise: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return otherwise


def _digest(blocks: Mapping[str, Vector]) -> str:
    whole = hashlib.sha256()
    for block in sorted(blocks):
        whole.update(block.encode() + b"\0" + np.ascontiguousarray(blocks[block]).tobytes())
    return whole.hexdigest()
