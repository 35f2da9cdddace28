"""Fleets as files: tiers of devices with what they own, how fast they are and what they draw."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLEETS = Path(__file__).parent.parent / "fleets"

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class FleetError(ValueError):
    """A fleet that cannot be: which file, which entry, what to do."""


class Tier(BaseModel):
    """Devices of one kind.

    modalities    names or patterns ("left_*", "*"); or a list of such lists, through which the tier's devices cycle
    speed         of arithmetic, as a part of the fleet's `gflops`
    rate, down    bytes per second up and down (down: as up where it is not given); 0: not limited
    latency       seconds a round that no choice changes: the assignment out, the update's handshake
    watts         above idle while computing; idle_watts  all the time
    share         of the training windows, relative to other devices
    cpu           share of a core that a real process of this tier gets (tools.lab.measure); 0: not limited
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    devices: Annotated[int, Field(ge=1)]
    modalities: list[str] | list[list[str]]
    speed: Positive
    rate: NotNegative = 0.0
    down: NotNegative | None = None
    latency: NotNegative = 0.0
    watts: NotNegative = 0.0
    idle_watts: NotNegative = 0.0
    share: Positive = 1.0
    cpu: Annotated[float, Field(ge=0, le=1)] = 0.0

    def owned(self, k: int, known: tuple[str, ...]) -> tuple[str, ...]:
        """What the tier's k-th device owns of the `known` modalities, in their order. Raises FleetError."""
        several = [entry for entry in self.modalities if isinstance(entry, list)]
        wanted = several[k % len(several)] if several else [e for e in self.modalities if isinstance(e, str)]
        for pattern in wanted:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise FleetError(f"tier {self.name}: no modality is called {pattern!r}; there are {', '.join(known)}")
        return tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in wanted))


class Fleet(BaseModel):
    """A fleet file. `gflops` is the arithmetic of speed 1 in 1e9 floating-point operations per second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    dataset: str
    gflops: Positive = 1.0
    tier: Annotated[list[Tier], Field(min_length=1)]

    @property
    def devices(self) -> int:
        return sum(t.devices for t in self.tier)


def fleet(named: str | Path) -> Fleet:
    """The fleet in a file, or one of those that come along, by name. Raises FleetError."""
    path = Path(named)
    if path.suffix != ".toml":
        path = FLEETS / f"{named}.toml"
    if not path.is_file():
        raise FleetError(f"no fleet file {path}; those that come along: {', '.join(fleets())}")
    try:
        return Fleet.model_validate({"name": path.stem, **tomllib.loads(path.read_text())})
    except tomllib.TOMLDecodeError as error:
        raise FleetError(f"{path}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise FleetError(f"{path}: {'.'.join(str(level) for level in first['loc'])}: {first['msg']}") from None


def fleets() -> list[str]:
    """Names of the fleet files that come along."""
    return sorted(path.stem for path in FLEETS.glob("*.toml"))
