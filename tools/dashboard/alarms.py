"""What is wrong with a fleet, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tools.dashboard.board import Board

SILENT = 15.0  # seconds without a summary while a round is open
HOT = 80.0  # degrees Celsius
GONE = 0.2  # fraction of the fleet that is offline before it is one alarm
FEW = 5  # names that an alarm lists


class Level(str, Enum):
    """How urgent: nothing learns, something is lost, worth a look."""

    STOPPED = "stopped"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Alarm:
    """`what` is the matter and what `todo`."""

    level: Level
    what: str
    todo: str


def alarms(board: Board) -> list[Alarm]:
    """All that is wrong now, the most urgent first."""
    found = [*_connection(board), *_coordinator(board)]
    if board.summary:
        found += [*_disk(board.summary), *_cohorts(board.summary), *_devices(board), *_refused(board.summary)]
    order = list(Level)
    return sorted(found, key=lambda alarm: order.index(alarm.level))


def _connection(board: Board) -> Iterator[Alarm]:
    if board.connection == "connecting" and not board.summary:
        yield Alarm(Level.NOTE, "Connecting to the broker", "If this stays, check the broker's address and port.")
    elif board.connection not in ("", "connecting"):
        yield Alarm(
            Level.STOPPED,
            f"No connection to the broker: {board.connection}",
            "Look whether Mosquitto runs (`relief broker check`), then at our certificate. All that is shown is old.",
        )


def _coordinator(board: Board) -> Iterator[Alarm]:
    if board.connection:
        return
    s = board.summary
    if board.coordinator is False and s.get("rounds") and s["round"] > s["rounds"]:
        yield Alarm(
            Level.NOTE,
            f"All {s['rounds']} rounds are done, and the coordinator has ended",
            "`relief report` shows the run. Begin another with another folder, or go on with more coordinator.rounds.",
        )
    elif board.coordinator is False:
        yield Alarm(
            Level.STOPPED,
            "The coordinator is not running",
            "Start it again with the same folder: it continues with the round that was open.",
        )
    elif not board.summary:
        yield Alarm(
            Level.NOTE,
            f"Nothing heard yet of a coordinator of fleet {board.fleet}",
            "Start one with `relief coordinator run`, or check the fleet's name.",
        )
    elif board.summary["phase"] == "training" and board.silence() > max(SILENT, board.summary.get("deadline", 0.0)):
        yield Alarm(
            Level.WARNING,
            f"The coordinator has said nothing for {board.silence():.0f} s",
            "Look at its log; its machine may be overloaded or cut off.",
        )


def _disk(summary: dict[str, Any]) -> Iterator[Alarm]:
    known = {
        "disk": "Free space in the coordinator's folder: rounds continue by themselves, nothing is lost.",
        "checkpoint": "Free space in the coordinator's folder; until then a restart has more to replay.",
        "history": "Free space in the coordinator's folder; what waits is written by itself.",
        "versions": "Free space in the coordinator's folder; the next scores bring these along.",
        "broker": "What it did not take is sent again. Raise max_packet_size there, or queue_bytes of [broker].",
        "budget": "Raise deadline, joules or bytes of [coordinator]; a device that changes is tried again by itself.",
        "listener": "Rounds go on without it. Look at that server or folder; metrics.jsonl has everything.",
    }
    for name, text in summary.get("alarms", {}).items():
        level = Level.STOPPED if name in ("disk", "budget") else Level.WARNING
        yield Alarm(level, f"{name}: {text}", known.get(name, "See the coordinator's log."))


def _cohorts(summary: dict[str, Any]) -> Iterator[Alarm]:
    lost = [m for m, owners in summary.get("cohorts", {}).items() if not owners]
    alone = [m for m, owners in summary.get("cohorts", {}).items() if owners == 1]
    if lost and summary.get("devices"):
        yield Alarm(
            Level.WARNING,
            f"Nobody who is online owns {_list(lost)}",
            "These blocks stay as they are. Bring an owner online.",
        )
    if alone:
        yield Alarm(
            Level.NOTE,
            f"One device alone trains {_list(alone)}",
            "No divergence can be measured with one owner; add a second device with this sensor.",
        )


def _devices(board: Board) -> Iterator[Alarm]:
    by_state: dict[str, list[str]] = {}
    for id, row in board.rows.items():
        by_state.setdefault(row["state"], []).append(id)
    gone = by_state.get("offline", [])
    if gone:
        level = Level.WARNING if len(gone) >= GONE * len(board.rows) else Level.NOTE
        yield Alarm(
            level,
            f"{len(gone)} of {len(board.rows)} devices offline: {_list(gone)}",
            "Rounds go on without them; what they finished waits in their outbox. Check power and network.",
        )
    for id in by_state.get("declined", [])[:FEW]:
        yield Alarm(Level.WARNING, f"{id} takes no part: {board.rows[id]['why']}", "See the device's own page and log.")
    if late := by_state.get("late", []):
        yield Alarm(
            Level.NOTE,
            f"Stragglers: {_list(late)}",
            "The round waits until its deadline at most; the next prediction takes their new speed into account.",
        )
    hot = [id for id, row in board.rows.items() if (row["celsius"] or 0) >= HOT]
    if hot:
        yield Alarm(Level.WARNING, f"Above {HOT:.0f} °C: {_list(hot)}", "Check the fan, or set a lower power mode.")
    if held := by_state.get("quarantined", []):
        yield Alarm(Level.NOTE, f"In quarantine: {_list(held)}", "Release them once their trouble is mended.")


def _refused(summary: dict[str, Any]) -> Iterator[Alarm]:
    refused = {kind: n for kind, n in summary.get("refused", {}).items() if not kind.startswith("stale")}
    if refused:
        kinds = ", ".join(f"{kind} ({n})" for kind, n in sorted(refused.items(), key=lambda pair: -pair[1])[:FEW])
        yield Alarm(
            Level.NOTE,
            f"Refused messages: {kinds}",
            "Bad input changes nothing. The coordinator's log names each sender once per kind.",
        )


def _list(names: list[str]) -> str:
    names = sorted(names)
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")
