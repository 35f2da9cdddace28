"""Reading the original files beside pandas.read_csv, and the second start from the cache.

Speeds are per second of processor time, all threads together: what else the machine does matters less, and our second
thread is no advantage. The compiled kernel is loaded before, as pandas is; what that takes is a row of its own. Starts
are those of new processes, timed on the wall behind their imports.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas

from sensors import compiled, dsads, mhealth, pamap2
from sensors.archive import Archive
from sensors.locate import places, roots
from sensors.numerals import numbers
from sensors.originals import write_mhealth, write_pamap2
from sensors.text import Form, Kernel, parse_table, tables

TURNS = 7  # readers and rival in turn, so that a busy machine slows all; the best of each counts
STARTS = 5
BOUT_S = 25.0  # seconds of each activity, several times
SEGMENTS = 200  # of DSADS
FASTER_AGAIN = 10  # the second start beside the first

LOAD = """
import time
from sensors import compiled
began = time.process_time()
compiled.kernel()
print(time.process_time() - began)
"""
START = """
import sys, time
from pathlib import Path
from sensors.{module} import {reader}
began, worked = time.perf_counter(), time.process_time()
data = {reader}(Path(sys.argv[1]))
for subject in data.subjects():
    for _ in data.recordings(subject):
        pass
print(time.perf_counter() - began, time.process_time() - worked)
"""


def bench() -> list[dict[str, Any]]:
    """Rows: name, value, unit, rival (name, value), promise, ok. Files are written here, in the original formats."""
    rows = [_loading()]
    with tempfile.TemporaryDirectory() as folder:
        # As long as a real subject's: 24 MB and 37,000 rows, 16 MB and 103,000 rows.
        for name, write, module, bouts in (
            ("PAMAP2", write_pamap2, pamap2, 2),
            ("MHEALTH", write_mhealth, mhealth, 6),
        ):
            (file,) = write(Path(folder) / name, subjects=1, bout_s=BOUT_S, bouts=bouts)
            rows += _numbers(name, [file.read_bytes()], module.LAYOUT.form)
            rows += _starts(name, file, Path(folder) / "cache")
    for name, form, files in (
        ("PAMAP2, real subject 109", pamap2.LAYOUT.form, _real("pamap2", r"subject109\.dat", 1)),
        (f"DSADS, {SEGMENTS} real files", dsads.FORM, _real("dsads", r"a\d\d/p\d/s\d\d\.txt", SEGMENTS)),
    ):
        rows += _numbers(name, files, form) if files else [{"name": name, "skipped": "RELIEF_DATA names none"}]
    return rows


def _numbers(name: str, files: list[bytes], form: Form) -> list[dict[str, Any]]:
    """Both kernels beside pandas."""
    size = sum(map(len, files)) / 1e6
    kernel = compiled.kernel()

    def ours(kernel: Kernel) -> None:
        for text in files:
            if len(files) > 1:
                parse_table(text, form, name, kernel)
            else:
                for _ in tables(io.BytesIO(text), form, name, kernel=kernel):
                    pass

    def rival() -> None:
        for text in files:
            pandas.read_csv(io.BytesIO(text), sep=form.delimiter, header=None)

    *own, beside = _best(lambda: ours(numbers), *([lambda: ours(kernel)] if kernel else []), rival)
    rows = []
    for which, seconds in zip(("numpy", "compiled"), own, strict=False):
        row = {"name": f"{name}, numbers, {which}", "value": round(size / seconds), "unit": "MB/s", "promise": None}
        row["rival"] = {"name": "pandas.read_csv", "value": round(size / beside)}
        rows.append(row | ({"promise": "as fast", "ok": seconds <= beside} if which == "compiled" else {}))
    if kernel is None:
        rows.append({"name": f"{name}, numbers, compiled", "skipped": "pip install 'relief-edge[fast]'"})
    return rows


def _starts(name: str, file: Path, cache: Path) -> list[dict[str, Any]]:
    """From the text to recordings in a new process: when the file has changed, and when it has not."""
    code = START.format(module=name.lower(), reader=name.capitalize())
    first = second = worked = float("inf")
    for _ in range(STARTS):
        os.utime(file)  # changed, as far as the cache knows
        wall, cpu = _child(code, file.parent, cache)
        first, worked = min(first, wall), min(worked, cpu)
        second = min(second, _child(code, file.parent, cache)[0])
    return [
        {
            "name": f"{name}, text to recordings, gaps filled",
            "value": round(file.stat().st_size / 1e6 / worked),
            "unit": "MB/s",
            "promise": None,
        },
        {
            "name": f"{name}, second start",
            "value": round(first / second, 1),
            "unit": "x faster",
            "rival": {"name": "first start", "value": f"{first:.2f} s"},
            "promise": f"{FASTER_AGAIN} x",
            "ok": first / second >= FASTER_AGAIN,
        },
    ]


def _loading() -> dict[str, Any]:
    """What a process pays once for the compiled kernel."""
    if compiled.kernel() is None:  # compiled by now at the latest, so that a new process only loads it
        return {"name": "loading the compiled kernel", "skipped": "pip install 'relief-edge[fast]'"}
    seconds = min(_child(LOAD)[0] for _ in range(STARTS))
    return {"name": "loading the compiled kernel", "value": round(seconds, 2), "unit": "s", "promise": None}


def _child(code: str, folder: Path | None = None, cache: Path | None = None) -> list[float]:
    """The numbers that a new process prints."""
    command = [sys.executable, "-c", code, *([str(folder)] if folder else [])]
    environment = os.environ | ({"RELIEF_CACHE": str(cache)} if cache else {})
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in ran.stdout.split()]


def _real(folder: str, pattern: str, most: int) -> list[bytes]:
    """The first real files of that name, none where they are not there."""
    for _, root in roots():
        for place in places(root / folder):
            archive = Archive(place, pattern, "real recordings")
            with archive.reading() as reading:
                return [reading.read(member) for member in sorted(archive.members)[:most]]
    return []


def _best(*runs: Callable[[], None]) -> list[float]:
    """Seconds of processor time of the fastest run of each."""
    best = [float("inf")] * len(runs)
    for _ in range(TURNS):
        for n, run in enumerate(runs):
            worked = time.process_time()
            run()
            best[n] = min(best[n], time.process_time() - worked)
    return best


if __name__ == "__main__":
    for row in bench():
        beside = row.get("rival", {})
        said = (
            row.get("skipped")
            or f"{row['value']:>7} {row['unit']}   {beside.get('name', '')} {beside.get('value', '')}"
        )
        print(f"{row['name']:<44} {said}")
