"""A configuration made into a transport."""

from __future__ import annotations

from protocol.config import BrokerConfig
from protocol.memory import MemoryBroker, MemoryTransport
from protocol.transport import Transport


def connection(config: BrokerConfig, identity: str, memory: MemoryBroker | None = None) -> Transport:
    """The transport that `config` names, not yet open. `memory` is where in-memory parties of one process meet."""
    if config.transport == "memory":
        if memory is None:
            raise ValueError(
                'broker.transport = "memory" joins parties of one process only: give them one MemoryBroker'
            )
        return MemoryTransport(memory, identity)
    from protocol.mqtt import MqttTransport  # paho costs memory that an in-memory party need not spend

    return MqttTransport(config, identity)
