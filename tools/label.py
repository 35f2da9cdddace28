"""`relief label`: tell a device what its wearer is doing, or was doing until a moment ago."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from protocol.config import BrokerConfig
from protocol.connection import connection
from protocol.messages import Label
from protocol.topics import Topics, check_name
from protocol.transport import Connected, Event, Stopped
from protocol.waiting import take
from tools.configuration import dataset, read

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h)?\Z")
_SECONDS = {None: 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def label(
    activity: Annotated[str, typer.Argument(help="The activity's name as the model's data set has it, or its index.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="Configuration file with fleet, broker and model.")],
    device: Annotated[str, typer.Option("--device", "-d", help="Whose sensors saw it.")],
    last: Annotated[str, typer.Option(help="For how long it has been going on until now: 30s, 2min.")] = "30s",
    operator: Annotated[str, typer.Option(help="Name of this operator; one identity per tool.")] = "operator",
) -> None:
    """Label what a device has just sensed; it joins the label to its windows by time.

    Example: relief label --config fleet.toml --device band-1 walking --last 30s
    """
    file = read(config)
    activities = dataset(file.model.dataset).activities
    index, seconds = class_index(activity, activities), duration(last)
    now = time.time()
    send(file.broker, file.fleet, device, Label(start=now - seconds, end=now, label=index), operator)
    typer.echo(f"{device}: the last {seconds:g} s were {activities[index]!r}")


def class_index(activity: str, activities: Sequence[str]) -> int:
    """The class of a name, its beginning if only one begins so, or a number. ValueError naming what there is."""
    wanted = activity.strip().lower()
    if wanted.isdigit() and int(wanted) < len(activities):
        return int(wanted)
    names = [name.lower() for name in activities]
    if wanted in names:
        return names.index(wanted)
    begin = [n for n, name in enumerate(names) if wanted and name.startswith(wanted)]
    if len(begin) != 1:
        raise ValueError(f"activity {activity!r}: the model knows {', '.join(activities)}")
    return begin[0]


def duration(text: str) -> float:
    """Seconds of 30s, 2min, 1.5h or a plain number. ValueError."""
    found = _DURATION.match(text.strip())
    if not found or not float(found[1]):
        raise ValueError(f"--last {text!r}: use a time such as 30s, 2min or 1h")
    return float(found[1]) * _SECONDS[found[2]]


def send(broker: BrokerConfig, fleet: str, device: str, message: Label, operator: str) -> None:
    """Publish a label. Nobody answers: a device that is away does not hear it. ValueError where the broker refuses."""
    topic = Topics(fleet).device(check_name(device, "device"), "label")
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    transport = connection(broker, f"operator-{operator}-label")
    transport.open(inbox.put)
    end = time.monotonic() + broker.connect_timeout + 2.0
    try:
        while (left := end - time.monotonic()) > 0:
            try:
                event = take(inbox, left)
            except queue.Empty:
                break
            if isinstance(event, Connected):
                transport.publish(topic, message.encode())
                return
            if isinstance(event, Stopped):
                raise ValueError(f"label: {event.reason}")
        raise ValueError(f"label: no connection to {broker.host}:{broker.port} within {broker.connect_timeout + 2:g} s")
    finally:
        transport.close()
