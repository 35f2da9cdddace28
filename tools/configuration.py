"""The configuration file as the coordinator's side reads it: fleet, broker, model, coordinator, evaluation."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from coordinator.config import CoordinatorConfig
from models.spec import BPolicy, InputSpec, Mode, ModelSpec
from protocol.config import BrokerConfig, FilePath, Party, Section, load
from protocol.topics import check_name
from sensors.locate import find
from sensors.recording import DataSet

Positive = Annotated[int, Field(ge=1)]


class ModelConfig(Section):
    """The model; its inputs and classes are those of `dataset`, in windows of `window_s` seconds.

    name    a model of another package: an entry point in the group `relief.models`, a function that gives the
            ModelSpec for a data set; the other keys but `base` are then its business
    base    folder of a model made by `relief pretrain` (mode lora)
    """

    dataset: str = "synthetic"
    name: str | None = None
    window_s: Annotated[float, Field(gt=0)] | None = None
    mode: Mode = Mode.FULL
    widths: tuple[Positive, ...] = (16, 32)
    kernel: Positive = 5
    stride: Positive = 2
    bins: Positive = 4
    fusion: Positive = 64
    rank: Positive = 4
    alpha: Annotated[float, Field(gt=0)] = 8.0
    encoder_rank: Annotated[int, Field(ge=0)] = 0
    b_policy: BPolicy = BPolicy.AVERAGE
    seed: Annotated[int, Field(ge=0)] = 0
    base: FilePath | None = None

    def spec(self, dataset: DataSet) -> ModelSpec:
        """The model for this data set's modalities and classes."""
        if self.name:
            return _installed(self.name, dataset)
        seconds = self.window_s or dataset.window_s
        return ModelSpec(
            inputs=tuple(
                InputSpec(m.name, len(m.channels), round(seconds * dataset.rate_hz)) for m in dataset.modalities
            ),
            classes=len(dataset.activities),
            mode=self.mode,
            widths=self.widths,
            kernel=self.kernel,
            stride=self.stride,
            bins=self.bins,
            fusion=self.fusion,
            rank=self.rank,
            alpha=self.alpha,
            encoder_rank=self.encoder_rank,
            b_policy=self.b_policy,
            seed=self.seed,
        )


def _installed(name: str, dataset: DataSet) -> ModelSpec:
    others = {e.name: e for e in entry_points(group="relief.models")}
    if name not in others:
        raise ValueError(f"model.name = {name!r}: installed are {', '.join(sorted(others)) or 'none'}")
    made: ModelSpec = others[name].load()(dataset)
    return made


class OwnerConfig(Section):
    """A device as the evaluation sees it."""

    modalities: tuple[str, ...]
    subjects: tuple[str, ...]


class EvaluationConfig(Section):
    """Windows that judge: the last sixth of the time of every owner's subjects, and all of the `held_out` subjects."""

    dataset: str
    held_out: tuple[str, ...]
    owner: tuple[OwnerConfig, ...]


class File(Party):
    """What `relief coordinator run` reads of a configuration file."""

    fleet: Annotated[str, AfterValidator(lambda name: check_name(name, "fleet"))] = "relief"
    broker: BrokerConfig = BrokerConfig()
    model: ModelConfig = ModelConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    evaluation: EvaluationConfig | None = None


def read(path: Path) -> File:
    """Read a configuration file. ConfigError naming key, value and what is allowed."""
    return load(path, File)


def dataset(name: str) -> DataSet:
    """The data set called `name`, wherever it is found."""
    return find(name).dataset
