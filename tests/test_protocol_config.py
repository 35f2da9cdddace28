"""The configuration file: one for all parties, and errors that say key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from protocol.config import BrokerConfig, Party, Section, load, parse
from protocol.connection import connection
from protocol.errors import ConfigError


class _Training(Section):
    steps: Annotated[int, Field(ge=1, le=1000)] = 8


class _Device(Party):
    broker: BrokerConfig = BrokerConfig()
    training: _Training = _Training()


def _load(folder: Path, text: str) -> _Device:
    file = folder / "relief.toml"
    file.write_text(text)
    return load(file, _Device)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == _Device()


def test_sections_of_other_parties_are_not_our_business(tmp_path: Path) -> None:
    read = _load(tmp_path, "[broker]\nport = 8883\n[coordinator]\nanything = 1\n")
    assert read.broker.port == 8883


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    read = _load(tmp_path, '[broker]\nca = "certs/ca.pem"\n')
    assert read.broker.ca == tmp_path / "certs/ca.pem"
    assert BrokerConfig(ca=Path("/etc/ca.pem")).ca == Path("/etc/ca.pem")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[broker]\nport = 99999", "broker.port = 99999: allowed is less than or equal to 65535"),
        ("[broker]\nport = 'x'", "broker.port = 'x': allowed is a valid integer"),
        ("[broker]\ntransport = 'udp'", "broker.transport = 'udp': allowed is 'mqtt' or 'memory'"),
        ("[broker]\nprot = 1", "broker.prot is not a known key, did you mean port? Allowed: ca, cert"),
        ("[training]\nsteps = 0", "training.steps = 0: allowed is greater than or equal to 1"),
        ("[broker]\ncert = 'a'", "cert and key go together"),
        ("[broker]\npassword = 'a'", "password is set but username is not"),
        ("[broker]\nreconnect_max = 0.5", "reconnect_max is below reconnect_min"),
        ("[broker\n", "is not TOML"),
        ("broker = 3", "broker = 3: allowed is a valid dictionary or instance of BrokerConfig"),
    ],
)
def test_an_error_names_the_key_the_value_and_what_is_allowed(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "relief.toml"))


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, "[broker]\nport = 0\nkeepalive = 1\n[training]\nsteps = -1\n")
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "broker.port",
        "broker.keepalive",
        "training.steps",
    ]


def test_a_missing_file_and_bytes_that_are_no_text_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "absent.toml", _Device)
    (tmp_path / "relief.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8: byte 0"):
        load(tmp_path / "relief.toml", _Device)


def test_plain_values_are_checked_like_a_file() -> None:
    values: dict[str, Any] = {"broker": {"port": -1}}
    with pytest.raises(ConfigError, match=r"options: broker\.port = -1"):
        parse(values, _Device, "options")


def test_the_memory_transport_asks_for_the_broker_it_needs() -> None:
    with pytest.raises(ValueError, match="give them one MemoryBroker"):
        connection(BrokerConfig(transport="memory"), "d1")
