"""The verbs of `relief fleet`: where they look for a fleet, and what they say when nobody is there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import typer

from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.errors import Unavailable
from protocol.mqtt import MqttTransport
from tests.synthetic_fleet import SyntheticCoordinator
from tools.steering import Fleet, fleet_of, of_a_fleet
from tools.watch import Watch


def test_a_file_names_the_fleet_and_its_broker(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('fleet = "ward3"\n[broker]\nport = 1999\n')
    found = fleet_of(tmp_path / "fleet.toml", operator="night")
    assert (found.name, found.broker.port, found.identity("steer")) == ("ward3", 1999, "operator-night-steer")


def test_a_verb_has_its_own_options_and_those_that_name_the_fleet() -> None:
    seen: list[object] = []

    @of_a_fleet
    def verb(fleet: Fleet, device: str, reason: str = "none") -> None:
        seen.extend([fleet.name, fleet.broker.port, device, reason])

    app = typer.Typer()
    app.command()(verb)
    typer.main.get_command(app).main(["band-1", "--fleet", "f", "--port", "5"], standalone_mode=False)
    assert seen == ["f", 5, "band-1", "none"]


def test_a_name_that_no_topic_may_have_is_refused() -> None:
    with pytest.raises(ValueError, match="fleet"):
        fleet_of(fleet="a/b")
    with pytest.raises(ValueError, match="operator"):
        fleet_of(operator="+")


def test_without_a_broker_the_line_says_why() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and nobody answers
        fleet = Fleet("f", BrokerConfig(port=taken.getsockname()[1], connect_timeout=1.0), "operator")
        with pytest.raises(Unavailable, match="refused"):
            fleet.ask("pause", {})


def test_requests_reach_the_coordinator_and_a_refusal_ends_with_one(
    broker: Broker, fleet: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator = SyntheticCoordinator(fleet, MqttTransport(BrokerConfig(port=broker.port), "coordinator-control"), 3)
    here = fleet_of(fleet=fleet, port=broker.port)
    try:
        with Watch(fleet, here.connection("watch")) as watch:
            assert watch.next(20.0), "it listens: it has subscribed before it says anything"
        here.steer("pause", {})
        assert capsys.readouterr().out == f"fleet {fleet}: pause: done\n"
        assert [r.kind for r in coordinator.asked] == ["pause"]
        with pytest.raises(typer.Exit) as end:
            here.steer("quarantine", {"device": "nobody", "reason": "x"})
        assert end.value.exit_code == 1
        assert "nobody" in capsys.readouterr().err
    finally:
        coordinator.close()
