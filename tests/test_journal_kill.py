"""kill -9 of a real writer at random moments: what it was told to be durable is there. And how fast all this is."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.journal import Journal

WRITER = """
import sys, zlib
from pathlib import Path
from coordinator.journal import Journal
journal = Journal.open(Path(sys.argv[1]), segment_bytes=300_000)
size, n = int(sys.argv[2]), 0
print("ready", flush=True)
while True:
    for _ in range(7):
        body = (b"%d" % n * size)[:size]
        position = journal.append("update", {"n": n, "crc": zlib.crc32(body)}, body)
        n += 1
    journal.sync()
    print(position, flush=True)
"""


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_writer_leaves_all_that_was_acknowledged_and_a_prefix_of_the_rest(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice([0, 40, 5_000, 60_000])
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        acked = [int(line) for line in child.stdout.read().splitlines() if line]
    journal = Journal.open(tmp_path)
    positions = [r.position for r in journal.records()]
    assert positions == list(range(1, len(positions) + 1))
    assert not acked or positions[-1] >= acked[-1]
    for record in journal.records():
        assert journal._index[record.position].sound()
        assert len(journal.read(record.position)) == size
    journal.close()


def test_a_thousand_updates_are_durable_in_batches_and_recovered_well_below_two_seconds(tmp_path: Path) -> None:
    body, journal = os.urandom(50_000), Journal.open(tmp_path)
    start = time.perf_counter()
    for n in range(1000):
        journal.append("update", {"device": f"device-{n:04d}", "round": 1, "n": n}, body)
        if n % 20 == 19:
            journal.sync()
    appended = time.perf_counter() - start
    journal.close()
    start = time.perf_counter()
    again = Journal.open(tmp_path)
    found = sum(1 for _ in again.records())
    recovered = time.perf_counter() - start
    again.close()
    print(f"1,000 x 50 KB, a sync per 20: {1000 / appended:,.0f} updates/s; recovered in {recovered:.3f} s")
    assert found == 1000
    assert recovered < 2.0
