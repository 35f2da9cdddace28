"""Waiting for the next event of an inbox."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def take(inbox: SimpleQueue[T], timeout: float | None) -> T:
    """The next item within `timeout` seconds (None: however long it takes). Raises queue.Empty.

    Before Python 3.12, `SimpleQueue.get(timeout)` can wait for ever: it takes the queue's free lock, finds nothing, and
    where the timeout has passed meanwhile it goes on with a negative one, which means none. Looking without waiting
    first leaves the lock taken, so that the second look really waits.
    """
    try:
        return inbox.get_nowait()
    except Empty:
        if timeout is not None and timeout <= 0:
            raise
        return inbox.get(timeout=timeout)
