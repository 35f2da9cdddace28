"""The assignments of a device: one that waits, one that is trained, and those that are done."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass

from models.local import Local
from protocol.messages import Assignment

REMEMBERED = 256  # finished assignments that are recognised when they come again
FAILED = ""  # stands where a finished assignment has no update


@dataclass
class Job:
    """An assignment and when it came."""

    assignment: Assignment
    local: Local
    received: float
    lacks: bool = False  # whether something is missing that can be asked for

    @property
    def ends(self) -> float:
        """Its deadline; inf where it has none."""
        a = self.assignment
        return self.received + a.deadline if a.deadline > 0 else math.inf


class Docket:
    """At most one job waits and one is trained: a newer assignment takes the place of an older one, never the reverse.

    done    assignment -> its update's id, or FAILED
    """

    def __init__(self) -> None:
        self.waiting: Job | None = None
        self.training: Job | None = None
        self.done: OrderedDict[str, str] = OrderedDict()
        self._stopping = False
        self._newest = (0, 0)  # epoch and round of the newest assignment from this life of the coordinator

    def holds(self, assignment: str) -> bool:
        """Whether this very assignment waits or is trained."""
        return any(job.assignment.id == assignment for job in (self.waiting, self.training) if job)

    def stale(self, a: Assignment) -> bool:
        """Whether it was given up for a newer one, or comes late."""
        return (a.epoch, a.round) < self._newest

    def add(self, job: Job) -> str:
        """Let a job wait; the assignment whose training has to be stopped for it, or nothing."""
        self._newest = (job.assignment.epoch, job.assignment.round)
        self.waiting = job
        return self._stop()

    def begin(self) -> Job:
        """The waiting job is trained now."""
        job = self.waiting
        assert job is not None
        self.waiting, self.training, self._stopping = None, job, False
        return job

    def finish(self, assignment: str, update: str) -> Job | None:
        """A training ended; its job, or None where nobody wants the result any more."""
        job = self.training
        if job is None or job.assignment.id != assignment:
            return None
        superseded, self.training, self._stopping = self._stopping, None, False
        if superseded:
            return None
        self.done[assignment] = update
        while len(self.done) > REMEMBERED:
            self.done.popitem(last=False)
        return job

    def renew(self, epoch: int, unanswered: Container[str], *, first: bool) -> str:
        """Another life of the coordinator, which may number its assignments anew: only what it still has to answer
        stays done. Returns the assignment whose training has to be stopped, or nothing.

        first    it is the first that is heard of: what it has assigned before keeps its order
        """
        self.done = OrderedDict((a, u) for a, u in self.done.items() if u in unanswered)
        held = [job.assignment for job in (self.waiting, self.training) if job and first]
        self._newest = (epoch, max((a.round for a in held if a.epoch == epoch), default=0))
        if self.waiting and self.waiting.assignment.epoch < epoch:
            self.waiting = None
        return self._stop() if self.training and self.training.assignment.epoch != epoch else ""

    def _stop(self) -> str:
        if self.training is None or self._stopping:
            return ""
        self._stopping = True
        return self.training.assignment.id
