"""`make bench`: every benchmark beside its floor or rival, as a table and as JSON in `results/bench.json`."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the processes that are measured

import importlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path("results/bench.json")


def names() -> list[str]:
    """All benchmarks, without `bench_`: files with a function `bench` that returns rows.

    A row has name, value, unit, promise, ok and what it is compared with, as floor or rival (name, value); or name and
    `skipped`, the reason why it was not measured here.
    """
    here = Path(__file__).parent
    return sorted(p.stem.removeprefix("bench_") for p in here.glob("bench_*.py") if "\ndef bench(" in p.read_text())


def main() -> None:
    """Run the benchmarks named on the command line (without `bench_`), or all; exit code 1 if a promise is broken."""
    if unknown := [name for name in sys.argv[1:] if name not in names()]:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}; no name runs all")
    console = Console()
    rows: list[dict[str, Any]] = []
    for name in sys.argv[1:] or names():
        with console.status(f"measuring {name}"):
            try:
                rows += [{"bench": name, **row} for row in importlib.import_module(f"tests.bench_{name}").bench()]
            except Exception as error:  # the others are still worth measuring, and the exit code tells
                console.print_exception()
                rows.append({"bench": name, "name": name, "failed": f"{type(error).__name__}: {error}", "ok": False})
    table = Table(header_style="bold")
    for column in ("what", "measured", "beside", "promise", ""):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    missed = [row["name"] for row in rows if not row.get("ok", True)]
    verdict = f"{len(missed)} of {len(rows)} promises missed: {'; '.join(missed)}" if missed else "all promises kept"
    console.print(f"bench: {len(rows)} figures, {verdict}; JSON in {RESULTS}")
    raise SystemExit(1 if missed else 0)


def cells(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """A row as the table shows it."""
    if "skipped" in row or "failed" in row:
        return row["name"], "", "", "", f"not here: {row['skipped']}" if "skipped" in row else "[red]failed[/]"
    beside = row.get("floor") or row.get("rival") or {}
    words = f"{beside['name']} {beside.get('value', '')}".strip() if beside.get("name") else ""
    promise = "" if row.get("promise") is None else str(row["promise"])
    return row["name"], f"{row['value']} {row['unit']}", words, promise, "" if row.get("ok", True) else "[red]missed[/]"


if __name__ == "__main__":
    main()
