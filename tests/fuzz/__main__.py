"""python -m tests.fuzz [INPUTS] [--target NAME] [--seed S] [--jobs J] [--atheris]: bytes from strangers by the million.

Inputs that fail are kept in corpus/<target>, where every later run, and the test suite, begins with them. The last line
is the verdict with its figures.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.mutate import mutated
from tests.fuzz.samples import samples
from tests.fuzz.targets import EFFORT, TARGETS

CORPUS = Path(__file__).parent / "corpus"
HANG = 2.0  # seconds that one input may take
GROWTH = 32 * 1024 * 1024  # bytes that a target may grow by after its first tenth


class Result(NamedTuple):
    target: str
    inputs: int
    failures: int
    slowest: float
    growth: int
    seconds: float


def pool_of(target: str) -> list[bytes]:
    """Where mutation begins: valid samples and what was kept."""
    return samples(target) + [p.read_bytes() for p in sorted((CORPUS / target).glob("*.bin"))]


def resident() -> int:
    """Bytes of memory in use by this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def fuzz(target: str, inputs: int, seed: int) -> Result:
    """Feed `inputs` inputs to one target; failing ones are kept."""
    run, pool, draw = TARGETS[target], pool_of(target), random.Random(f"{target} {seed}")
    failures, slowest, base = 0, 0.0, 0
    began = time.perf_counter()
    for n in range(inputs):
        data = pool[n] if n < len(pool) else mutated(draw, pool)
        start = time.perf_counter()
        try:
            run(data)
        except Exception:
            failures += 1
            keep(target, data)
            if failures <= 3:
                print(f"{target}: {data[:80]!r}\n{traceback.format_exc(limit=-3)}", flush=True)
        took = time.perf_counter() - start
        if took > HANG:
            failures += 1
            keep(target, data)
            print(f"{target}: {took:.1f} s for {data[:80]!r}", flush=True)
        slowest = max(slowest, took)
        if n == max(inputs // 10, 2000):
            base = resident()
    growth = max(0, resident() - base) if base else 0
    return Result(target, inputs, failures, slowest, growth, time.perf_counter() - began)


def keep(target: str, data: bytes) -> None:
    """Into the corpus, by digest."""
    place = CORPUS / target
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("inputs", nargs="?", type=int, default=20_000)
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, one target, until stopped")
    given = parser.parse_args()
    names = [given.target] if given.target else list(TARGETS)
    if given.atheris:
        return guided(names[0], given.inputs)
    share = sum(EFFORT[name] for name in names)
    work = [(name, -(-given.inputs * EFFORT[name] // share), given.seed) for name in names]
    began = time.perf_counter()
    with multiprocessing.Pool(given.jobs, maxtasksperchild=1) as pool:
        results = [r.get() for r in [pool.apply_async(fuzz, one) for one in sorted(work, key=lambda w: -w[1])]]
    broken = 0
    for r in results:
        broken += r.failures + (r.growth > GROWTH)
        print(f"  {r.target:12} {r.inputs:9,} inputs, {r.failures} failed, slowest {r.slowest * 1000:.1f} ms, "
              f"grew {r.growth / 2**20:.1f} MiB, {r.inputs / r.seconds:,.0f}/s")  # fmt: skip
    total, took = sum(r.inputs for r in results), time.perf_counter() - began
    print(
        f"{'FAILED' if broken else 'OK'}: {total:,} inputs to {len(results)} targets, {broken} broken, in {took:.0f} s"
    )
    return 1 if broken else 0


def guided(target: str, inputs: int) -> int:
    """libFuzzer finds its way by coverage, where atheris is installed (`pip install atheris`)."""
    try:
        import atheris  # type: ignore[import-not-found]
    except ImportError:
        print("atheris is not installed here: `pip install atheris`, or leave --atheris away")
        return 2
    place = CORPUS / target
    place.mkdir(parents=True, exist_ok=True)
    for data in samples(target):
        keep(target, data)
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-runs={inputs}", "-max_len=4096", str(place)], TARGETS[target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
