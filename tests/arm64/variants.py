"""Other versions of the project, made of its own source: a newer one, one that cannot start, one whose check fails."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from tools.flashing.wheelhouse import ROOMS, SOURCE, build

# file -> what is written at its end
CANNOT_START = {"device_runtime/inference.py": "\nraise ImportError('made to fail')\n"}
CHECK_IS_BROKEN = {"device_runtime/checks.py": "\n\ndef examine(known):\n    raise SystemExit(2)\n"}


def variant(folder: Path, version: str, changes: Mapping[str, str] | None = None) -> Path:
    """The wheel of this source as `version`, with `changes` at the ends of files."""
    source = folder / f"source-{version}"
    source.mkdir(parents=True)
    for room in ROOMS:
        shutil.copytree(SOURCE / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(SOURCE / name, source / name)
    text = (SOURCE / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(re.sub(r'^version = ".*"$', f'version = "{version}"', text, flags=re.M))
    for name, more in (changes or {}).items():
        with (source / name).open("a") as file:
            file.write(more)
    return build(folder / f"wheel-{version}", source)
