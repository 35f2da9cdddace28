"""Waiting ends: with an item, or when the time is over, however short it was."""

from __future__ import annotations

import queue
import random
import subprocess
import sys
import threading
import time

import pytest

from protocol.waiting import take

SHORT = """
import queue, random, time
from protocol.waiting import take
inbox, end = queue.SimpleQueue(), time.monotonic() + 1.0
while time.monotonic() < end:
    inbox.put(1)
    inbox.get()
    try:
        take(inbox, random.random() * 3e-6)
    except queue.Empty:
        pass
"""


def test_the_shortest_waits_end() -> None:
    """In a process of its own: plain SimpleQueue.get hangs here on Python 3.10 and 3.11."""
    subprocess.run([sys.executable, "-c", SHORT], check=True, timeout=30)


def test_an_item_that_comes_later_ends_the_wait() -> None:
    inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
    timer = threading.Timer(0.05, inbox.put, [7])
    timer.start()
    assert take(inbox, 10.0) == 7
    timer.join()


def test_items_come_in_order_and_an_empty_inbox_is_said() -> None:
    inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
    inbox.put(1)
    inbox.put(2)
    assert [take(inbox, 0.0), take(inbox, None)] == [1, 2]
    began = time.monotonic()
    for timeout in (0.0, -1.0, random.uniform(0.01, 0.02)):
        with pytest.raises(queue.Empty):
            take(inbox, timeout)
    assert time.monotonic() - began < 1.0
