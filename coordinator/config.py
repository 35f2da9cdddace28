"""The coordinator's section of the configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from coordinator.defence import Defence
from coordinator.quarantine import Limits
from coordinator.robust import Robust, Rule
from coordinator.rounds import Pace
from coordinator.strategies import strategy
from coordinator.strategies.base import Deadline, Settings
from models.local import Local
from protocol.config import FilePath, Section

Positive = Annotated[float, Field(gt=0)]


class TrainingConfig(Section):
    """How devices train between two rounds.

    dropout    chance of a modality to sit out a local step; where it is not given, what the strategy is known to like
    """

    learning_rate: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch: Annotated[int, Field(ge=1)] = 16
    epochs: Positive = 2.0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip: Annotated[float, Field(ge=0)] = 2.0
    wire: Literal["<f4", "<f8", "<f2", "|i1"] = "<f4"
    double: bool = False
    seed: int = 0


class CoordinatorConfig(Section):
    """Rounds, strategy and where the run's record is kept.

    deadline   "cohorts", "fastest", "learned", "none", a quantile below 1 of the devices' full rounds, or seconds
    joules     allowance per device and round, 0: none;  bytes  likewise for the uplink
    robust     how a cohort's updates become one, where a share of `hostile` devices is to be withstood
    buffer     updates that close a round, 0: everybody is waited for;  staleness  rounds that one may come late
    norm_bound updates longer than so many times the cohort's median are refused; 0: none are
    strikes    refusals within an hour that lead into quarantine; 0: none do
    """

    folder: FilePath = Path("runs/relief")
    strategy: str = "relief-momentum-samples"
    rounds: Annotated[int, Field(ge=0)] = 0
    buffer: Annotated[int, Field(ge=0)] = 0
    staleness: Annotated[int, Field(ge=0)] = 0
    expect: Annotated[int, Field(ge=1)] = 1
    gather: Annotated[float, Field(ge=0)] = 30.0
    settle: Annotated[float, Field(ge=0)] = 2.0
    patience: Annotated[float, Field(ge=1)] = 2.0
    margin: Annotated[float, Field(ge=0)] = 5.0
    deadline: Deadline = "cohorts"
    joules: Annotated[float, Field(ge=0)] = 0.0
    bytes: Annotated[float, Field(ge=0)] = 0.0
    training: TrainingConfig = TrainingConfig()
    robust: Literal["none", "median", "trimmed", "krum", "clipped"] = "none"
    hostile: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    norm_bound: Annotated[float, Field(ge=0)] = 10.0
    strikes: Annotated[int, Field(ge=0)] = 3

    def settings(self) -> Settings:
        """What strategies need to know. ValueError for a strategy that nobody knows."""
        t = self.training
        local = Local(
            lr=t.learning_rate,
            momentum=t.momentum,
            batch=t.batch,
            seed=t.seed,
            dropout=strategy(self.strategy).dropout if t.dropout is None else t.dropout,
            clip=t.clip,
            double=t.double,
            wire=t.wire,
        )
        robust = None if self.robust == "none" else Robust(Rule(self.robust), share=self.hostile)
        return Settings(t.epochs, self.deadline, self.joules, self.bytes, local, robust)

    def defence(self) -> Defence:
        """The bound of norms and the quarantine."""
        limits = Limits(strikes=self.strikes) if self.strikes else None
        return Defence(bound=self.norm_bound, limits=limits, momentum=self.training.momentum)

    def pace(self) -> Pace:
        return Pace(
            self.expect, self.gather, self.settle, self.patience, self.margin, self.rounds, self.buffer, self.staleness
        )

    @model_validator(mode="after")
    def _paced(self) -> CoordinatorConfig:
        self.pace()  # raises ValueError where buffer and staleness contradict each other
        return self
