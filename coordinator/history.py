"""What a run has shown so far, round by round: kept for the summary and written as one JSON line per round."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coordinator.aggregation import Divergence
from coordinator.estimate import FedAvgRound
from coordinator.events import UpdateHead

TRAIL = 60  # rounds, and evaluations, that the summary carries: a page that comes late begins with them


@dataclass
class RoundRecord:
    """One committed round.

    began, ended       wall clock, seconds since the coordinator started
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
        kept = asdict(self)
        for name in ("devices", "clock", "power"):
            del kept[name]
        return kept


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
    """Appends to `metrics.jsonl`: a line per round, and a line per evaluation with `scores`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.trail: deque[dict[str, Any]] = deque(maxlen=TRAIL)  # rounds in brief
        self.scored: deque[dict[str, Any]] = deque(maxlen=TRAIL)  # evaluations
        self._file = path.open("a", encoding="utf-8")
        self.rounds: int = 0
        self.last: RoundRecord | None = None
        self.scores: dict[str, float] = {}
        self.scored_round = 0
        self.joules = 0.0

    def round(self, one: RoundRecord) -> None:
        self.last, self.rounds, self.joules = one, self.rounds + 1, self.joules + one.joules
        self.trail.append(one.brief())
        self._write({"kind": "round", **asdict(one)})

    def score(self, round: int, at: float, scores: Mapping[str, float]) -> None:
        """Scores of the blocks after `round`, which was committed `at` seconds after the run began."""
        self.scores, self.scored_round = dict(scores), round
        self.scored.append({"round": round, "at": at, **scores})
        self._write({"kind": "scores", "round": round, "at": at, **scores})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
