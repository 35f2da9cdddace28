"""What tests share: one real Mosquitto, on which every test keeps to a fleet of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from broker_config.launcher import Broker, BrokerFailed

_fleets = itertools.count()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A Mosquitto on loopback for the whole run; tests that hurt a broker start their own."""
    try:
        running = Broker().start()
    except BrokerFailed as error:
        pytest.skip(f"Mosquitto does not run here: {error}")
    yield running
    running.stop()


@pytest.fixture
def fleet() -> str:
    """A fleet's name that no other test uses."""
    return f"fleet{next(_fleets)}"
