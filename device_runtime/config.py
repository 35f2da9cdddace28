"""The device's section of the configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from device_runtime.accelerator import Wish
from device_runtime.inference_config import InferenceConfig
from device_runtime.sensors_config import LiveConfig
from protocol.config import BrokerConfig, FilePath, Party, Section, load
from protocol.errors import ConfigError
from protocol.topics import check_name

Share = Annotated[float, Field(gt=0, le=1)]
PowerSource = Literal["jtop", "ina3221", "ina238", "rapl", "estimate"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class SourceConfig(Section):
    """What is sensed: a data set's subject, replayed.

    part                 begin and end of each activity's time that is played; the first two thirds are for training
    speed                1: the recorded pace; inf: as fast as it can be read
    window_s, overlap    by default the data set's own
    """

    dataset: str = "synthetic"
    subject: str = "1"
    part: tuple[Fraction, Fraction] = (0.0, 2 / 3)
    speed: Annotated[float, Field(gt=0)] = 1.0
    loop: bool = False
    window_s: Annotated[float, Field(gt=0)] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _forwards(self) -> SourceConfig:
        if self.part[0] >= self.part[1]:
            raise ValueError(f"part begins at {self.part[0]:g} and ends at {self.part[1]:g}: it must end later")
        return self


class DeviceConfig(Section):
    """One device.

    modalities    what it owns of its source; by default all of it
    source        a replayed recording; live  its own sensors instead
    inference     predictions on the device; without it there are none
    train         false: only sense, infer and report
    accelerator   where it trains: cpu, cuda, or auto, which measures both and takes the faster for the model
    memory        bytes that training windows may take; the oldest give way
    state         folder of its outbox
    quota         share of one CPU core, 0: not limited
    watts         above idle while it computes; with it no power monitor is asked. 0: `power` is
    power         sources of power in the order they are tried: jtop, ina3221, ina238, rapl, estimate; empty: none
    idle_watts    what the board draws at rest; 0: measured at birth
    max_celsius, min_battery    beyond these degrees, or below these percent, assignments are declined
    rate          bytes per second that its uplink carries; 0: not known
    telemetry     seconds between two telemetry messages; 0: none
    """

    id: Annotated[str, AfterValidator(lambda name: check_name(name, "device"))]
    tier: str = ""
    modalities: tuple[str, ...] = ()
    source: SourceConfig = SourceConfig()
    live: LiveConfig | None = None
    inference: InferenceConfig | None = None
    train: bool = True
    accelerator: Wish = "auto"
    memory: Annotated[int, Field(ge=1 << 16)] = 64 * 1024 * 1024
    state: FilePath = Path("state")
    quota: Annotated[float, Field(ge=0, le=64)] = 0.0
    watts: Annotated[float, Field(ge=0)] = 0.0
    power: tuple[PowerSource, ...] = ("jtop", "ina3221", "rapl", "estimate")
    idle_watts: Annotated[float, Field(ge=0)] = 0.0
    max_celsius: Annotated[float, Field(gt=0)] = 85.0
    min_battery: Annotated[float, Field(ge=0, le=100)] = 20.0
    rate: Annotated[float, Field(ge=0)] = 0.0
    telemetry: Annotated[float, Field(ge=0)] = 10.0
    outbox_bytes: Annotated[int, Field(ge=1 << 16)] = 256 * 1024 * 1024
    will_delay: Annotated[int, Field(ge=0, le=300)] = 5

    @property
    def folder(self) -> Path:
        """Where this device keeps its state."""
        return self.state / self.id


class _File(Party):
    fleet: Annotated[str, AfterValidator(lambda name: check_name(name, "fleet"))] = "relief"
    broker: BrokerConfig = BrokerConfig()
    device: tuple[DeviceConfig, ...] = ()


class Settings(Section):
    """All that one device process needs to know."""

    fleet: str
    broker: BrokerConfig
    device: DeviceConfig


def settings(path: Path, device: str | None = None) -> Settings:
    """Read one [[device]] of a configuration file; `device` may be left out where there is only one. ConfigError."""
    file = load(path, _File)
    known = [d.id for d in file.device]
    chosen = [d for d in file.device if d.id == device or (device is None and len(known) == 1)]
    if not chosen:
        asked = "which one is not said" if device is None else f"no [[device]] has the id {device!r}"
        raise ConfigError(str(path), [f"{asked}: it has {', '.join(known) or 'none'}"])
    if len(chosen) > 1:
        raise ConfigError(str(path), [f"{len(chosen)} [[device]] sections have the id {device!r}"])
    return Settings(fleet=file.fleet, broker=file.broker, device=chosen[0])
