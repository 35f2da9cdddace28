"""One fleet as the verbs of `relief fleet` name it, and asking its coordinator for something.

    @app.command()
    @of_a_fleet
    def pause(fleet: Fleet) -> None: ...

gives `pause` the options --config, --host, --port, --fleet and --operator, and the fleet that they name.
"""

from __future__ import annotations

import functools
import inspect
import queue
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, NoReturn, ParamSpec

import typer

from protocol.config import BrokerConfig
from protocol.connection import connection
from protocol.errors import Unavailable
from protocol.messages import Reply, Request, decode
from protocol.topics import Topics, check_name
from protocol.transport import Connected, Event, Lost, Received, Stopped, Transport
from protocol.waiting import take
from tools.configuration import read

ANSWER_S = 5.0  # a coordinator answers between two events; this is for one that is folding a round

P = ParamSpec("P")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file with fleet and broker.")]
Host = Annotated[str, typer.Option(help="Broker's host, without a configuration file.")]
Port = Annotated[int, typer.Option(help="Broker's port, without a configuration file.", min=1, max=65535)]
Name = Annotated[str, typer.Option("--fleet", help="Fleet's name, without a configuration file.")]
Operator = Annotated[str, typer.Option(help="Name of this operator; one identity per tool.")]


@dataclass(frozen=True)
class Fleet:
    """A fleet by its name, the broker it meets at, and the operator who looks at it."""

    name: str
    broker: BrokerConfig
    operator: str

    def connection(self, tool: str) -> Transport:
        """A connection, not yet open, under the identity that the operator has for this tool."""
        return connection(self.broker, self.identity(tool))

    def identity(self, tool: str) -> str:
        """The operator's identity for a tool."""
        return f"operator-{self.operator}-{tool}"

    def ask(self, kind: str, args: dict[str, Any]) -> Reply | None:
        """Send a request to the coordinator; its reply, or None where nobody answers. Unavailable without a broker."""
        topics, identity = Topics(self.name), self.identity("steer")
        request = Request.model_validate({"id": secrets.token_hex(8), "operator": identity, "kind": kind, "args": args})
        inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        transport = self.connection("steer")
        transport.open(inbox.put)
        end, met = time.monotonic() + self.broker.connect_timeout + ANSWER_S, False
        lost = f"no connection within {self.broker.connect_timeout + ANSWER_S:g} s"
        try:
            while (left := end - time.monotonic()) > 0:
                try:
                    event = take(inbox, left)
                except queue.Empty:
                    break
                if isinstance(event, Connected):
                    met = True
                    transport.subscribe(topics.reply(identity))
                    transport.publish(topics.coordinator("request"), request.encode())
                elif isinstance(event, Lost):
                    lost = event.reason
                elif isinstance(event, Stopped):
                    raise Unavailable(self.broker.where, event.reason)
                elif isinstance(event, Received):
                    reply = decode(Reply, event.payload)
                    if reply.id == request.id:
                        return reply
        finally:
            transport.close()
        if not met:
            raise Unavailable(self.broker.where, lost)
        return None

    def demand(self, kind: str, args: dict[str, Any]) -> Reply:
        """The coordinator's reply where it did what was asked; else a line that says why, and exit code 1."""
        reply = self.ask(kind, args)
        if reply is None:
            self._refused("the coordinator did not answer; is it running?")
        if not reply.ok:
            self._refused(f"{kind}: {reply.reason}")
        return reply

    def steer(self, kind: str, args: dict[str, Any]) -> None:
        """Ask, and say that it is done."""
        self.demand(kind, args)
        typer.echo(f"fleet {self.name}: {kind}: done")

    def _refused(self, why: str) -> NoReturn:
        typer.echo(f"fleet {self.name}: {why}", err=True)
        raise typer.Exit(1)


def fleet_of(
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 1883,
    fleet: Name = "relief",
    operator: Operator = "operator",
) -> Fleet:
    """The fleet of a configuration file, or the one that host, port and name say. ConfigError naming what is wrong."""
    if config is None:
        return Fleet(check_name(fleet, "fleet"), BrokerConfig(host=host, port=port), check_name(operator, "operator"))
    file = read(config)
    return Fleet(file.fleet, file.broker, check_name(operator, "operator"))


def of_a_fleet(verb: Callable[Concatenate[Fleet, P], None]) -> Callable[..., None]:
    """A verb whose first parameter is a Fleet, as a command: in its place it has the options that name one."""
    own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
    naming = list(inspect.signature(fleet_of, eval_str=True).parameters.values())

    @functools.wraps(verb)
    def command(**values: Any) -> None:
        verb(fleet_of(**{p.name: values.pop(p.name) for p in naming}), **values)  # type: ignore[call-arg]

    vars(command)["__signature__"] = inspect.Signature([*own, *naming])  # what typer makes the options of
    return command
