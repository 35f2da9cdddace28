"""Experiment files: which methods meet on which fleets, for how long, and what each may tune."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coordinator.strategies.base import Deadline, Settings
from models.local import Local
from models.spec import BPolicy, InputSpec, Mode, ModelSpec
from tools.lab.fleet import Fleet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPERIMENTS = Path(__file__).parent / "experiments"


class ExperimentError(ValueError):
    """An experiment that cannot be run: which file, which entry, what to do."""


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Entry):
    """A strategy with its settings. What is not given is the experiment's common value.

    strategy        its name in coordinator.strategies
    title           how the report calls it
    learning_rate   fixed, per mode; where it is missing it is tuned on validation
    modes           the experiment's modes that it is run in; none: all of them
    b_policy        what becomes of LoRA's B; without it as the experiment's model says
    until           how long it runs, as a part of the reference's clock; 0: as many rounds as the reference
    regret          keep, round by round, what it would have gained by knowing every cohort's true divergence
    """

    strategy: str
    title: str = ""
    learning_rate: dict[str, float] = {}
    modes: list[Mode] = []
    epochs: float | None = None
    deadline: Deadline = "none"
    dropout: float = 0.0
    clip: float = 0.0
    wire: Literal["<f4", "<f2", "|i1"] = "<f4"
    joules: float = 0.0
    bytes: float = 0.0
    until: Annotated[float, Field(ge=0)] = 1.0
    options: dict[str, float] = {}
    b_policy: BPolicy | None = None
    regret: bool = False


class Tuning(Entry):
    """Learning rates every method tries, on which folds and by which seed; scored where no test window is."""

    rates: list[float] = [0.02, 0.05, 0.1, 0.2]
    folds: list[int] = [0, 1, 2]
    seed: int = 100


class Sizes(Entry):
    """The model, apart from the data set's inputs and classes."""

    widths: list[int] = [16, 32]
    kernel: int = 5
    bins: int = 4
    fusion: int = 64
    rank: int = 4
    alpha: float = 8.0
    encoder_rank: int = 0
    b_policy: BPolicy = BPolicy.AVERAGE


class Experiment(Entry):
    """A grid of methods x fleets x modes x folds x seeds.

    rounds      of the reference, per mode, fixed in advance on validation
    public      training subjects per mode that the fleet does not hold and the base of lora is pre-trained on
    every       rounds between two evaluations, for every method
    """

    name: str
    fleets: list[str] = ["coupled"]
    modes: list[Mode] = [Mode.FULL]
    folds: list[int] = [0, 1, 2]
    seeds: list[int] = [0, 1, 2, 3, 4]
    reference: str = "fedavg"
    rounds: dict[str, int] = {"full": 60, "lora": 60}
    public: dict[str, int] = {"full": 0, "lora": 1}
    every: int = 1
    epochs: float = 2.0
    batch: int = 16
    momentum: float = 0.9
    model: Sizes = Sizes()
    tuning: Tuning = Tuning()
    methods: dict[str, Method]

    @model_validator(mode="after")
    def _reference_is_there(self) -> Experiment:
        if self.reference not in self.methods:
            raise ValueError(f"reference {self.reference!r} is none of the methods {', '.join(self.methods)}")
        for mode in self.modes:
            if self.reference not in self.methods_in(mode):
                raise ValueError(f"reference {self.reference!r} must run in every mode, also in {mode.value}")
        return self

    @model_validator(mode="after")
    def _fleets_have_names(self) -> Experiment:
        names = [Path(f).stem for f in self.fleets]
        for name in names:
            if names.count(name) > 1:  # runs and pictures are called by it
                raise ValueError(f"two fleets are called {name!r}; give their files names of their own")
        return self

    def methods_in(self, mode: Mode) -> list[str]:
        """Names of the methods that are run in a mode."""
        return [name for name, method in self.methods.items() if not method.modes or mode in method.modes]

    def spec(self, mode: Mode) -> ModelSpec:
        """The model's sizes; the inputs stand for those of a data set (tools.lab.world fills them in)."""
        sizes = self.model.model_dump()
        return ModelSpec((InputSpec("any", 1, 10**6),), 2, mode=mode, **{**sizes, "widths": tuple(self.model.widths)})

    def of(self, method: Method) -> Experiment:
        """The experiment as this method sees it: with its policy for B."""
        if method.b_policy is None:
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"b_policy": method.b_policy})})

    def settings(self, method: Method, rate: float, seed: int) -> Settings:
        """What the method's strategy needs to know."""
        local = Local(
            lr=rate,
            momentum=self.momentum,
            batch=self.batch,
            seed=seed,
            dropout=method.dropout,
            clip=method.clip,
            wire=method.wire,
        )
        epochs = self.epochs if method.epochs is None else method.epochs
        return Settings(epochs, method.deadline, method.joules, method.bytes, local)


@dataclass(frozen=True)
class Cell:
    """One run: a method on a fleet, in a mode, on a fold, by a seed; `tuning` ones never see test windows."""

    method: str
    fleet: str
    mode: Mode
    fold: int
    seed: int
    rate: float
    tuning: bool = False
    clock: float = 0.0  # simulated seconds at which it ends; 0: by rounds

    def key(self, experiment: Experiment, fleet: Fleet) -> str:
        """A file name that changes whenever anything that decides the result does, also what the fleet's file says."""
        common = experiment.model_dump(mode="json", include={"rounds", "public", "every", "epochs", "batch"})
        about: dict[str, Any] = {
            **common,
            "fleet": fleet.model_dump(mode="json", exclude={"name"}, exclude_defaults=True),
            "momentum": experiment.momentum,
            "model": experiment.model.model_dump(mode="json"),
            "method": experiment.methods[self.method].model_dump(
                mode="json", exclude={"title", "learning_rate", "modes"}, exclude_defaults=True
            ),
            "rate": self.rate,
            "tuning": self.tuning,
            "clock": round(self.clock, 6),
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
        return f"{Path(self.fleet).stem}-{self.mode.value}-{self.method}-f{self.fold}-s{self.seed}-{digest}"


def experiment(named: str | Path) -> Experiment:
    """The experiment in a file, or one of those that come along, by name. Raises ExperimentError."""
    path = Path(named)
    if path.suffix != ".toml":
        path = EXPERIMENTS / f"{named}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.toml")))
        raise ExperimentError(f"no experiment file {path}; those that come along: {known}")
    try:
        return Experiment.model_validate({"name": path.stem, **tomllib.loads(path.read_text())})
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ExperimentError(f"{path}: {'.'.join(str(level) for level in first['loc'])}: {first['msg']}") from None
