"""Where recordings are: `RELIEF_DATA`, then `./data`, else the synthetic set, always saying which."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from sensors.dsads import Dsads
from sensors.mhealth import Mhealth
from sensors.pamap2 import Pamap2
from sensors.recording import DataSet
from sensors.synthetic import Synthetic

# name -> (folder below the root, how to read it)
READERS: dict[str, tuple[str, Callable[[Path], DataSet]]] = {
    "dsads": ("dsads", Dsads),
    "dsads15": ("dsads", lambda path: Dsads(path, "sensors")),
    "mhealth": ("mhealth", Mhealth),
    "pamap2": ("pamap2", Pamap2),
}
NAMES = (*READERS, "synthetic")
MADE_UP = "MADE-UP.txt"  # lies beside recordings that `relief data generate` wrote


@dataclass(frozen=True)
class Found:
    """A data set and where it was found, which `note` says in one line.

    path      None for the synthetic set and for sets of other packages
    missing   why the synthetic set stands in for the one that was asked for; empty where it does not
    """

    dataset: DataSet
    path: Path | None
    note: str
    missing: str = ""


def roots() -> list[tuple[str, Path]]:
    """Where recordings are looked for, in this order, and what each place is called."""
    named = os.environ.get("RELIEF_DATA")
    return [*([("RELIEF_DATA", Path(named))] if named else []), ("./data", Path("data"))]


def find(name: str) -> Found:
    """The data set called `name`, else the synthetic one.

    ValueError for a name that nobody knows. DataError where there are recordings but damaged ones: they are never
    replaced silently.
    """
    if name == "synthetic":
        return _synthetic("synthetic sensor streams, made from a seed")
    if name not in READERS:
        return _installed(name)
    folder, reader = READERS[name]
    for called, root in roots():
        for place in places(root / folder):
            dataset = reader(place)
            made_up = ", made-up recordings" if (root / folder / MADE_UP).is_file() else ""
            note = f"{name}: {counted(len(dataset.subjects()), 'subject')} from {place} ({called}){made_up}"
            return Found(dataset, place, note)
    looked = " or ".join(str(root / folder) for _, root in roots())
    unset = "" if os.environ.get("RELIEF_DATA") else " (RELIEF_DATA is not set)"
    missing = f"no recordings in {looked}{unset}; `relief data fetch {folder}` gets them"
    return _synthetic(f"{name}: {missing}; until then the synthetic set stands in", missing)


def counted(number: int, what: str) -> str:
    """1 subject, 2 subjects."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _installed(name: str) -> Found:
    """A data set of another package: an entry point in the group `relief.datasets` that makes one when it is called."""
    others = {e.name: e for e in entry_points(group="relief.datasets")}
    if name not in others:
        raise ValueError(f"no data set {name!r}: expected one of {', '.join((*NAMES, *sorted(others)))}")
    made: DataSet = others[name].load()()
    return Found(made, None, f"{name}: {counted(len(made.subjects()), 'subject')} from {others[name].value}")


def places(folder: Path) -> list[Path]:
    """The zip files of a folder, or the folder itself where it holds unpacked files; nothing where it is empty."""
    if not folder.is_dir():
        return [folder.with_suffix(".zip")] if folder.with_suffix(".zip").is_file() else []
    inside = sorted(folder.iterdir())
    unpacked = [p for p in inside if p.is_dir() or p.suffix in (".dat", ".log")]
    return [folder] if unpacked else [p for p in inside if p.suffix == ".zip"]


def _synthetic(note: str, missing: str = "") -> Found:
    return Found(Synthetic(), None, note, missing)
