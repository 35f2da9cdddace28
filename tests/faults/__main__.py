"""python -m tests.faults [SEEDS] [--start S] [--jobs J] [--seed ONE] [--bug NAME]: bad days by the thousand.

The last line is the verdict with its figures; the exit code is 1 where an invariant was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults import planted


def run(seed: int, *, verbose: bool = False) -> object:
    """One seed in a folder of its own, in memory where the system has it."""
    from tests.faults.world import World

    logging.disable(logging.CRITICAL)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="relief-faults-", dir=memory if memory.is_dir() else None) as folder:
        return World(seed, Path(folder), verbose=verbose).run()


def _ready() -> None:
    """In a worker: garbage is collected between seeds only, and never among imports: an eighth of the time."""
    import tests.faults.world  # noqa: F401

    gc.collect()
    gc.freeze()
    gc.disable()


def _one(seed: int) -> object:
    verdict = run(seed)
    gc.collect()
    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("seeds", nargs="?", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--seed", type=int, help="replay this one and tell all that happens")
    parser.add_argument("--bug", help="plant this bug first; ends at the first seed that finds it")
    given = parser.parse_args()
    if given.bug:
        planted.plant(given.bug)
    if given.seed is not None:
        verdict = run(given.seed, verbose=True)
        print(verdict)
        return 1 if verdict.violation else 0  # type: ignore[attr-defined]
    return many(given.start, given.seeds, given.jobs, stop=bool(given.bug))


def many(start: int, seeds: int, jobs: int, *, stop: bool) -> int:
    began, total, kinds, broken = time.perf_counter(), Counter[str](), Counter[str](), []
    done = 0
    with multiprocessing.Pool(jobs, _ready) as pool, contextlib.suppress(KeyboardInterrupt):
        # An interrupted run tells its figures too; the workers, forked before this, just end.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for verdict in pool.imap(_one, range(start, start + seeds), chunksize=4 if seeds > 50 else 1):
            done += 1
            if not done % 500 and done < seeds:
                left = f"python -m tests.faults {seeds - done} --start {start + done}"
                print(f"  {done:,} seeds, {len(broken)} broken; the rest: {left}", flush=True)
            for name in ("rounds", "faults", "lives", "updates", "checks", "steps", "seconds"):
                total[name] += getattr(verdict, name)
            kinds.update(verdict.counts)
            if verdict.violation:
                broken.append(verdict.seed)
                print(f"seed {verdict.seed}: {verdict.violation}", flush=True)
                print(f"  again: python -m tests.faults --seed {verdict.seed}", flush=True)
                if stop:
                    break
        pool.terminate()
    for kind, count in sorted(kinds.items()):
        print(f"  {count:9,} x {kind}")
    took = time.perf_counter() - began
    print(
        f"{'FAILED' if broken else 'OK'}: {done:,} seeds, {len(broken)} broken, {total['rounds']:,} rounds, "
        f"{total['faults']:,} faults, {total['lives']:,} coordinator lives, {total['updates']:,} updates counted, "
        f"{total['checks']:,} checks, {total['seconds'] / 3600:,.0f} virtual hours in {took:.0f} s "
        f"({1000 * took * jobs / max(1, done):.0f} ms of one core a seed)"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
