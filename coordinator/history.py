"""What a run has shown so far, round by round: kept for the summary and written as one JSON line per round."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coordinator.aggregation import Divergence
from coordinator.estimate import FedAvgRound
from coordinator.events import UpdateHead

log = logging.getLogger("relief.coordinator")

TRAIL = 60  # rounds, and evaluations, that the summary carries: a page that comes late begins with them
WAITING = 16 * 1024 * 1024  # bytes of lines that wait for space at most; the oldest are left out, and counted


@dataclass
class RoundRecord:
    """One committed round.

    began, ended       wall clock, seconds that coordinators of this folder have run, this one and those before it
    divergence         block -> D' of this round (blocks with at least two trainers)
    joules             sum over devices, from `power` sources; estimates are named as such by the devices
    bytes_up, _down    payloads received, and published once for all subscribers
    fedavg             estimate of what the same round would have cost under FedAvg: seconds, joules, bytes_up, _down
    """

    round: int
    began: float
    ended: float
    assigned: int
    updates: int
    partial: int
    trainers: dict[str, int]
    divergence: dict[str, float]
    loss: float
    joules: float
    power: list[str]
    bytes_up: int
    bytes_down: int
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    clock: str = "wall"
    fedavg: dict[str, float] = field(default_factory=dict)

    def brief(self) -> dict[str, Any]:
        """The round without its devices, as the summary carries it."""
        return {name: value for name, value in vars(self).items() if name not in ("devices", "clock", "power")}


def record(
    round: int,
    began: float,
    ended: float,
    assigned: int,
    heads: Sequence[UpdateHead],
    seen: Mapping[str, tuple[Divergence, float]],
    bytes_up: int,
    bytes_down: int,
    fedavg: FedAvgRound | None = None,
) -> RoundRecord:
    """Condense a round's updates and folds."""
    samples = sum(h.samples for h in heads)
    return RoundRecord(
        round=round,
        began=began,
        ended=ended,
        assigned=assigned,
        updates=len(heads),
        partial=sum(h.partial for h in heads),
        trainers={block: d.trainers for block, (d, _) in seen.items()},
        divergence={block: d.value for block, (d, _) in seen.items() if d.value is not None},
        loss=sum(h.loss * h.samples for h in heads) / samples if samples else 0.0,
        joules=sum(h.joules for h in heads),
        power=sorted({h.power_source for h in heads}),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        devices={
            h.device: {
                "steps": {block: steps for block, (_, steps) in h.blocks.items()},
                "seconds": h.seconds,
                "joules": h.joules,
                "bytes": h.size,
                "loss": h.loss,
                "partial": h.partial,
            }
            for h in heads
        },
        fedavg=asdict(fedavg) if fedavg else {},
    )


class History:
    """Appends to `metrics.jsonl`: a line per round, and a line per evaluation with `scores`.

    A full disk costs nothing but patience: lines that find no space wait in memory and go first next time, and
    `problem` says so meanwhile. What counts is in the journal; no round waits for its line here.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.trail: deque[dict[str, Any]] = deque(maxlen=TRAIL)  # rounds in brief
        self.scored: deque[dict[str, Any]] = deque(maxlen=TRAIL)  # evaluations
        self.rounds: int = 0
        self.last: RoundRecord | None = None
        self.scores: dict[str, float] = {}
        self.scored_round = 0
        self.joules = 0.0
        self.problem = ""  # why lines are waiting; empty when none are
        self.left_out = 0  # lines that waited too long
        self._path, self._waiting = path, deque[bytes]()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = _whole_lines(self._fd)
        os.ftruncate(self._fd, self._size)
        self.until = _last_second(self._fd, self._size)  # where the record's clock stands

    def round(self, one: RoundRecord) -> None:
        self.last, self.rounds, self.joules = one, self.rounds + 1, self.joules + one.joules
        self.trail.append(one.brief())
        self._write({"kind": "round", **vars(one)})

    def score(self, round: int, at: float, scores: Mapping[str, float]) -> None:
        """Scores of the blocks after `round`, which was committed `at` seconds after the run began."""
        self.scores, self.scored_round = dict(scores), round
        self.scored.append({"round": round, "at": at, **scores})
        self._write({"kind": "scores", "round": round, "at": at, **scores})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._waiting.append(json.dumps(line).encode() + b"\n")
        self._flush()

    def _flush(self) -> None:
        """Write the lines that wait, whole ones only."""
        try:
            while self._waiting:
                line, done = self._waiting[0], 0
                while done < len(line):
                    done += os.pwrite(self._fd, line[done:], self._size + done)
                self._size += len(line)
                self._waiting.popleft()
            self.problem = ""
        except OSError as error:
            if not self.problem:
                log.error("history %s: %s; its lines wait for space", self._path, error)
            os.ftruncate(self._fd, self._size)  # a piece of a line helps nobody
            while sum(map(len, self._waiting)) > WAITING:
                self._waiting.popleft()
                self.left_out += 1
            self.problem = (
                f"history {self._path}: {error}; {len(self._waiting)} lines wait for space, {self.left_out} left out"
            )

    def close(self) -> None:
        """Try once more what waits, and close the file. May be called again."""
        if self._fd < 0:
            return
        self._flush()
        os.close(self._fd)
        self._fd = -1


def _whole_lines(fd: int) -> int:
    """Bytes up to the end of the last whole line: a crash may have left a piece of one behind it."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - 65536)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _last_second(fd: int, size: int) -> float:
    """The latest time that the last lines of a record name; 0 where there are none."""
    span, latest = 65536, 0.0
    while not latest:  # a large fleet's round is a line of megabytes
        start = max(0, size - span)
        for line in os.pread(fd, size - start, start).splitlines()[start > 0 :]:
            try:
                one = json.loads(line)
                latest = max(latest, float(one.get("ended", one.get("at", 0.0))))
            except (ValueError, AttributeError):
                continue  # a bad sector took it
        if not start:
            break
        span *= 8
    return latest
