"""Reading the original files beside pandas.read_csv, and the second start from the cache.

Speeds are per second of processor time, all threads together: what else the machine does matters less, and our second
thread is no advantage. The second start is timed on the wall.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas

from sensors import mhealth, pamap2
from sensors.mhealth import Mhealth
from sensors.originals import write_mhealth, write_pamap2
from sensors.pamap2 import Pamap2
from sensors.table_set import Layout, TableSet
from sensors.text import tables

TURNS = 7  # reader and rival in turn, so that a busy machine slows both; the best of each counts
BOUT_S = 25.0  # seconds of each activity, twice
FASTER_AGAIN = 10  # the second start beside the first


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, rival (name, value), promise, ok. Files are written here, in the original formats."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RELIEF_CACHE"] = str(Path(folder) / "cache")
        try:
            for name, write, layout, reader in (
                ("PAMAP2", write_pamap2, pamap2.LAYOUT, Pamap2),
                ("MHEALTH", write_mhealth, mhealth.LAYOUT, Mhealth),
            ):
                (file,) = write(Path(folder) / name, subjects=1, bout_s=BOUT_S, bouts=2)
                rows += _rows(name, file, layout, reader)
        finally:
            del os.environ["RELIEF_CACHE"]
    return rows


def _rows(name: str, file: Path, layout: Layout, reader: Callable[[Path], TableSet]) -> list[dict[str, Any]]:
    size = file.stat().st_size / 1e6

    def text() -> None:
        with file.open("rb") as stream:
            for _ in tables(stream, layout.form, file):
                pass

    def rival() -> None:
        pandas.read_csv(file, sep=layout.delimiter, header=None)

    def first() -> None:
        os.utime(file)  # changed, as far as the cache knows
        _read(reader(file.parent))

    def second() -> None:
        _read(reader(file.parent))

    (numbers, _), (whole, began), (beside, _), (_, again) = _best(text, first, rival, second)
    pandas_row = {"name": "pandas.read_csv", "value": round(size / beside)}
    return [
        _row(f"{name}, numbers from text", size / numbers, pandas_row, numbers <= beside),
        _row(f"{name}, text to recordings, gaps filled", size / whole, pandas_row, None),
        {
            "name": f"{name}, second start",
            "value": round(began / again, 1),
            "unit": "x faster",
            "rival": {"name": "first start", "value": f"{began:.2f} s"},
            "promise": f"{FASTER_AGAIN} x",
            "ok": began / again >= FASTER_AGAIN,
        },
    ]


def _row(name: str, speed: float, rival: dict[str, Any], ok: bool | None) -> dict[str, Any]:
    row = {"name": name, "value": round(speed), "unit": "MB/s", "rival": rival, "promise": None}
    return row if ok is None else row | {"promise": "as fast", "ok": ok}


def _read(data: TableSet) -> None:
    for subject in data.subjects():
        for _ in data.recordings(subject):
            pass


def _best(*runs: Callable[[], None]) -> list[tuple[float, float]]:
    """Seconds of processor time and on the wall of the fastest run of each."""
    best = [(float("inf"), float("inf"))] * len(runs)
    for _ in range(TURNS):
        for n, run in enumerate(runs):
            worked, began = time.process_time(), time.perf_counter()
            run()
            best[n] = min(best[n][0], time.process_time() - worked), min(best[n][1], time.perf_counter() - began)
    return best


if __name__ == "__main__":
    for row in bench():
        beside = row["rival"]
        print(f"{row['name']:<44} {row['value']:>7} {row['unit']}   {beside['name']} {beside['value']}")
