"""The configuration file: TOML, one for all parties, each reading the sections it knows.

A party's model has one field per section it needs and ignores the others; within a section nothing unknown passes, so a
mistyped key is found where it stands.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from protocol.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _from_the_files_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return folder / path.expanduser() if folder else path.expanduser()


FilePath = Annotated[Path, AfterValidator(_from_the_files_folder)]  # relative to the configuration file


class Section(BaseModel):
    """Base of a section: immutable, and no key that is not written here."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Party(BaseModel):
    """Base of what one party reads of the file: sections of others are not its business."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BrokerConfig(Section):
    """Where the parties meet, and how to behave there.

    ca, cert, key            PEM files; `ca` alone is TLS without a certificate of our own
    identities               instead: the folder with ca.pem, cert.pem and key.pem below each identity's name
    keepalive                seconds
    reconnect_min, _max      seconds; the wait is drawn at random and doubles from one towards the other
    queue_bytes              what may wait for the broker before a publish is refused
    inflight                 publishes without the broker's answer at a time (the broker may ask for fewer)
    """

    transport: Literal["mqtt", "memory"] = "mqtt"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    identities: FilePath | None = None
    username: str | None = None
    password: str | None = None
    keepalive: Annotated[int, Field(ge=2, le=300)] = 30
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 5.0
    reconnect_min: Annotated[float, Field(gt=0, le=60)] = 1.0
    reconnect_max: Annotated[float, Field(gt=0, le=3600)] = 120.0
    inflight: Annotated[int, Field(ge=1, le=65000)] = 1000
    queue_bytes: Annotated[int, Field(ge=1 << 16)] = 256 * 1024 * 1024

    @model_validator(mode="after")
    def _pairs(self) -> BrokerConfig:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: set both or neither")
        if self.cert is not None and self.ca is None:
            raise ValueError("cert is set but ca is not: set ca to the file that holds the broker's CA certificate")
        if self.ca is not None and self.identities is not None:
            raise ValueError("ca and identities exclude each other: set ca, cert and key, or identities alone")
        if self.password is not None and self.username is None:
            raise ValueError("password is set but username is not")
        if self.reconnect_max < self.reconnect_min:
            raise ValueError(f"reconnect_max is below reconnect_min ({self.reconnect_min:g} seconds)")
        return self

    def of(self, identity: str) -> BrokerConfig:
        """The same with the certificate of `identity`."""
        if self.identities is None:
            return self
        own = self.identities / identity
        files = {"ca": own / "ca.pem", "cert": own / "cert.pem", "key": own / "key.pem"}
        return self.model_copy(update={"identities": None, **files})

    @property
    def where(self) -> str:
        """host:port, for messages."""
        return "in memory" if self.transport == "memory" else f"{self.host}:{self.port}"


C = TypeVar("C", bound=BaseModel)


def load(path: Path, model: type[C]) -> C:
    """Read `path` as `model`. ConfigError names every wrong key, its value and what is allowed."""
    try:
        values = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"is not UTF-8: byte {error.start}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), [f"is not TOML: {error}"]) from None
    return parse(values, model, str(path), folder=path.parent)


def parse(values: dict[str, Any], model: type[C], where: str, *, folder: Path | None = None) -> C:
    """Validate plain values as `model`; `where` opens the error, relative paths are below `folder`."""
    try:
        return model.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(where, [_line(problem, model) for problem in error.errors(include_url=False)]) from None


def _line(problem: Any, model: type[BaseModel]) -> str:
    key = ".".join(str(level) for level in problem["loc"]) or "the file"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(model, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1)
        guess = f", did you mean {near[0]}?" if near else ""
        return f"{key} is not a known key{guess} Allowed: {', '.join(allowed)}"
    told = problem["msg"].removeprefix("Value error, ")
    told = told.removeprefix("Input should be ")
    value = problem["input"]
    if isinstance(value, (dict, list)):
        return f"{key}: {told}"
    return f"{key} = {value!r}: allowed is {told}" if told != problem["msg"] else f"{key} = {value!r}: {told}"


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that `path` leads to, as far as it goes through models."""
    for level in path:
        field = model.model_fields.get(str(level))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return sorted(model.model_fields)
