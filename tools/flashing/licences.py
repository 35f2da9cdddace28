"""What others wrote and under which terms, read from the wheels themselves."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

# What an owner may install besides, never part of a bundle, with the reason.
APART = (
    "jetson-stats (jtop): AGPL-3.0-or-later. Never in a bundle. Where an owner has installed it, it runs as a process "
    "of its own, which the runtime asks for the board's power."
)


def licence(wheel: Path) -> dict[str, str]:
    """Name, version and licence of a wheel, as its metadata say."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
        said = HeaderParser().parsestr(archive.read(name).decode(errors="replace"))
    classifiers = [
        c.split(" :: ")[-1] for c in said.get_all("Classifier", []) if c.startswith("License :: OSI Approved ::")
    ]
    short = (said.get("License") or "").strip().splitlines()[:1]
    terms = said.get("License-Expression") or ", ".join(classifiers) or "".join(short)[:60] or "not stated"
    return {"name": said["Name"], "version": said["Version"], "licence": terms}


def table(packages: Iterable[dict[str, str]]) -> str:
    """The list as Markdown."""
    lines = ["# What others wrote", "", "| package | version | licence |", "|---|---|---|"]
    lines += [f"| {one['name']} | {one['version']} | {one['licence']} |" for one in packages]
    return "\n".join([*lines, "", "Every wheel carries the full text.", "", APART, ""])
