"""Mosquitto's settings: what every profile shares, and the loopback profile of demos and tests.

Each setting is here because its default was seen to hurt; no line carries a trailing comment, because Mosquitto would
stop at it without a word.
"""

from __future__ import annotations

from pathlib import Path

Settings = dict[str, str | int | bool]

MAX_PACKET = 1_000_000  # bytes; a chunk needs 116 KiB

SHARED: Settings = {
    "max_qos": 1,
    "max_packet_size": MAX_PACKET,
    "max_keepalive": 300,
    "max_inflight_messages": 100,
    # A number: 0 for "no limit" is broken in some releases.
    "max_queued_messages": 20_000,
    "max_queued_bytes": 512 * 1024 * 1024,
    "queue_qos0_messages": False,
    # Without it 40 ms stalls, and a storm of reconnects takes ten times as long.
    "set_tcp_nodelay": True,
    "sys_interval": 10,
}


def loopback(port: int, folder: Path, *, user: str | None, persistence: bool = False) -> str:
    """The `local` profile: reachable from this machine only, anybody may do anything, its files below `folder`."""
    settings: Settings = {
        **({"user": user} if user else {}),
        "listener": f"{port} 127.0.0.1",
        "allow_anonymous": True,
        **SHARED,
        "persistence": persistence,
        **({"persistence_location": f"{folder}/", "autosave_interval": 30} if persistence else {}),
        "log_dest": f"file {folder / 'mosquitto.log'}",
    }
    return render(settings) + "log_type error\nlog_type warning\nlog_type notice\n"


def render(settings: Settings) -> str:
    """Lines of mosquitto.conf."""
    return "".join(f"{name} {_value(value)}\n" for name, value in settings.items())


def _value(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
