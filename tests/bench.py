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


def main() -> None:
    """Run the benchmarks named on the command line (without `bench_`), or all; exit code 1 if a promise is broken."""
    console = Console()
    here = Path(__file__).parent
    wanted = sys.argv[1:] or sorted(p.stem.removeprefix("bench_") for p in here.glob("bench_*.py"))
    rows: list[dict[str, Any]] = []
    for name in wanted:
        module = importlib.import_module(f"tests.bench_{name}")
        if not hasattr(module, "bench"):
            continue
        with console.status(f"measuring {name}"):
            rows += [{"bench": name, **row} for row in module.bench()]
    table = Table(header_style="bold")
    for column in ("what", "measured", "beside", "promise", ""):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        beside = row.get("floor") or row.get("rival") or {}
        words = f"{beside['name']} {beside.get('value', '')}".strip() if beside.get("name") else ""
        ok = row.get("ok", True)
        promise = "" if row.get("promise") is None else str(row["promise"])
        table.add_row(row["name"], f"{row['value']} {row['unit']}", words, promise, "" if ok else "[red]missed[/]")
    console.print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    missed = [row["name"] for row in rows if not row.get("ok", True)]
    verdict = f"{len(missed)} of {len(rows)} promises missed: {'; '.join(missed)}" if missed else "all promises kept"
    console.print(f"bench: {len(rows)} figures, {verdict}; JSON in {RESULTS}")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
