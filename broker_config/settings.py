"""Mosquitto's settings by profile: `local` (loopback, anybody), `site` (mTLS, access list), `bridge` (site to centre).

Each setting is here because its default was seen to hurt. Comments stand on lines of their own: Mosquitto stops without
a word at one behind a value. Written for 2.0; 2.1 takes it too, and what 3.0 drops is marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_config.acl import Access, Part, User, rules
from broker_config.sizing import Sizes

Settings = dict[str, str | int | bool]

MAX_PACKET = 1_000_000  # bytes; a chunk needs 116 KiB, and 2.1's own default is twice this

SHARED: Settings = {
    "max_qos": 1,
    "max_packet_size": MAX_PACKET,
    "max_keepalive": 300,
    "max_inflight_messages": 100,
    "queue_qos0_messages": False,
    # Without it 40 ms stalls, and a storm of reconnects takes ten times as long.
    "set_tcp_nodelay": True,
    "sys_interval": 10,
}
# `information` is where a reload is told.
LOG = "log_type error\nlog_type warning\nlog_type notice\nlog_type information\n"


@dataclass(frozen=True)
class Bridge:
    """A site broker's link to the central one, as `name`; `site` are the devices it speaks for."""

    name: str
    fleet: str
    host: str
    port: int
    site: tuple[str, ...]


def loopback(port: int, folder: Path, *, user: str | None, persistence: bool = False) -> str:
    """The `local` profile: reachable from this machine only, anybody may do anything, its files below `folder`."""
    settings: Settings = {
        **({"user": user} if user else {}),
        "listener": f"{port} 127.0.0.1",
        "allow_anonymous": True,
        **SHARED,
        # A number: 0 for "no limit" is broken in some releases.
        "max_queued_messages": 20_000,
        "max_queued_bytes": 512 * 1024 * 1024,
        "persistence": persistence,
        **({"persistence_location": f"{folder}/", "autosave_interval": 30} if persistence else {}),
        "log_dest": f"file {folder / 'mosquitto.log'}",
    }
    return render(settings) + LOG


def site(port: int, folder: Path, sizes: Sizes, *, address: str = "", user: str | None = None) -> str:
    """The `site` profile: mTLS, a certificate and an entry in the access list for everybody, persistence, limits.

    folder    where the broker's files live on its host (certificates, acl, data, log)
    address   listen there only; everywhere if empty
    user      whom Mosquitto becomes when root starts it; its own choice is `mosquitto`
    """
    settings: Settings = {
        **({"user": user} if user else {}),
        "listener": f"{port} {address}".strip(),
        "cafile": f"{folder / 'ca.pem'}",
        "certfile": f"{folder / 'broker.pem'}",
        "keyfile": f"{folder / 'broker.key'}",
        "crlfile": f"{folder / 'crl.pem'}",
        "tls_version": "tlsv1.2",
        "require_certificate": True,
        "use_identity_as_username": True,
        # Or any valid certificate could take the coordinator's client id and throw it out.
        "use_username_as_clientid": True,
        "allow_anonymous": False,
    }
    stores: Settings = {
        **SHARED,
        "max_queued_messages": sizes.messages,
        "max_queued_bytes": sizes.bytes,
        # Nobody of ours keeps a session beyond the delay of its will; this ends those of others.
        "persistent_client_expiration": "1d",
        "persistence": True,
        "persistence_location": f"{folder / 'data'}/",
        "autosave_interval": 30,
        "pid_file": f"{folder / 'mosquitto.pid'}",
        "log_dest": f"file {folder / 'mosquitto.log'}",
    }
    return (
        "# Made by `relief broker`; changes here are lost at the next change of the fleet.\n"
        "# The minimum is TLS 1.2; everybody shows a certificate, whose common name is user and client id.\n"
        + render(settings)
        + "# Deprecated from 2.1 on, where the plugin mosquitto_acl_file.so reads the same file; gone in 3.0.\n"
        + render({"acl_file": f"{folder / 'acl'}"})
        + "".join(f"# {line}.\n" for line in sizes.said)
        + render(stores)
        + LOG
    )


def bridge(link: Bridge, folder: Path) -> str:
    """What a site broker's configuration has besides `site`: the link to the centre, topic by topic."""
    settings: Settings = {
        "connection": link.name,
        "address": f"{link.host}:{link.port}",
        "bridge_protocol_version": "mqttv50",
        "bridge_cafile": f"{folder / 'bridge' / 'ca.pem'}",
        "bridge_certfile": f"{folder / 'bridge' / 'cert.pem'}",
        "bridge_keyfile": f"{folder / 'bridge' / 'key.pem'}",
        "bridge_tls_version": "tlsv1.2",
        "bridge_max_packet_size": MAX_PACKET,
        "remote_clientid": link.name,
        "local_clientid": f"{link.name}-local",
        # Retained state crosses at every connect; a queue for the time between would only grow.
        "cleansession": True,
        "notifications": False,
        "restart_timeout": "1 30",
        "keepalive_interval": 30,
    }
    lines = [f"topic {where} {'in' if access is Access.READ else 'out'} 1\n" for access, where in bridge_rules(link)]
    return "\n# To the central broker.\n" + render(settings) + "".join(lines)


def bridge_rules(link: Bridge) -> Sequence[tuple[Access, str]]:
    """What crosses the bridge, which is what its certificate may do at the centre."""
    return rules(User(link.name, Part.BRIDGE, link.fleet, link.name, link.site))


def render(settings: Settings) -> str:
    """Lines of mosquitto.conf."""
    return "".join(f"{name} {_value(value)}\n" for name, value in settings.items())


def _value(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
