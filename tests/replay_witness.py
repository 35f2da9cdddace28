"""Witnesses of a replay, each a process of its own: `python -m tests.replay_witness listen PORT` or `... sleep PERIOD`.

Both end with their standard input and then print how late things were, in seconds, as a JSON list.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time

from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport
from protocol.transport import Event, Received
from tools.replay import wait_for

TOPICS = "replayed/#"


def listen(port: int, over: threading.Event) -> list[float]:
    """How long after its last sample was sensed, by the message's own time, each message came."""
    late: list[float] = []
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def take(event: Event) -> None:
        now = time.time()
        if not isinstance(event, Received):
            events.put(event)
        elif not event.topic.endswith("/about"):
            plain = json.loads(bytes(event.payload))
            late.append(now - plain["time"] - len(plain["values"]) / plain["rate"])

    transport = MqttTransport(BrokerConfig(port=port), "witness")
    transport.open(take)
    wait_for(events, "witness", 30.0)
    transport.subscribe(TOPICS)
    print("ready", flush=True)
    over.wait()
    transport.close()
    return late


def sleep(period: float, over: threading.Event) -> list[float]:
    """How late a loop is that does nothing but sleep until the next of evenly spaced moments."""
    late: list[float] = []
    print("ready", flush=True)
    due = time.monotonic()
    while not over.is_set():
        due += period
        time.sleep(max(0.0, due - time.monotonic()))
        late.append(time.monotonic() - due)
    return late


def main() -> None:
    role, number = sys.argv[1:]
    over = threading.Event()

    def end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=end, daemon=True).start()
    print(json.dumps(listen(int(number), over) if role == "listen" else sleep(float(number), over)))


if __name__ == "__main__":
    main()
