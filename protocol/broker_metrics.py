"""How the broker is doing, from what Mosquitto publishes below $SYS: plain numbers for the coordinator's metrics.

Subscribe to `TOPICS`, hand every message to `take`. Brokers without $SYS give no values and no error.
"""

from __future__ import annotations

import time

# topic -> name of the metric
TOPICS: dict[str, str] = {
    "$SYS/broker/version": "version",
    "$SYS/broker/uptime": "uptime_seconds",
    "$SYS/broker/clients/connected": "clients_connected",
    "$SYS/broker/messages/received": "messages_received",
    "$SYS/broker/messages/sent": "messages_sent",
    "$SYS/broker/bytes/received": "bytes_received",
    "$SYS/broker/bytes/sent": "bytes_sent",
    # What was acknowledged to its sender and then lost at a full queue: more than 0 asks for larger queues.
    "$SYS/broker/publish/messages/dropped": "publishes_dropped",
    "$SYS/broker/store/messages/count": "messages_stored",
    "$SYS/broker/store/messages/bytes": "bytes_stored",
    "$SYS/broker/retained messages/count": "messages_retained",
    "$SYS/broker/heap/current": "heap_bytes",
}


class BrokerMetrics:
    """The latest value of each; `silent_seconds` tells how long ago the broker last said anything."""

    def __init__(self) -> None:
        self.version = ""
        self._values: dict[str, float] = {}
        self._heard: float | None = None

    def take(self, topic: str, payload: bytes) -> bool:
        """Whether this was one of ours; what cannot be read is passed over."""
        name = TOPICS.get(topic)
        if name is None:
            return topic.startswith("$SYS/")
        text = payload.decode(errors="replace")
        self._heard = time.monotonic()
        if name == "version":
            self.version = text[:80]
            return True
        try:
            self._values[name] = float(text.split(" ")[0])  # uptime comes as "17 seconds"
        except ValueError:
            self._values.pop(name, None)
        return True

    def values(self) -> dict[str, float]:
        """All numbers by name; empty where the broker says nothing."""
        if self._heard is None:
            return {}
        return {**self._values, "silent_seconds": round(time.monotonic() - self._heard, 1)}
