"""What a running fleet looks like on a terminal: rich renderables made from the coordinator's summary."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tools.phases import standing

STYLES = {"training": "yellow", "done": "green", "ready": "green", "offline": "red", "declined": "magenta"}


def fleet_panel(summary: dict[str, Any], title: str = "") -> RenderableType:
    """Devices, cohorts and scores in three small tables."""
    return Group(_headline(summary, title), _devices(summary), _blocks(summary))


def _headline(s: dict[str, Any], title: str) -> Text:
    scores = s.get("scores") or {}
    parts = [
        f"{title or s.get('strategy', '')}: {standing(s)}",
        f"{s.get('elapsed', 0.0):.0f} s",
    ]
    if s.get("last_seconds") is not None:
        parts.append(f"last round {s['last_seconds']:.1f} s, loss {s['loss']:.2f}")
    if scores:
        parts.append(
            f"F1 in-subject {scores['in_subject']:.3f}, held-out {scores['held_out']:.3f}, "
            f"rare alone {scores['rare_only']:.3f} (after round {s['scored_round']})"
        )
    parts.append(f"{s.get('bytes_up', 0) / 1e6:.1f} MB up, {s.get('bytes_down', 0) / 1e6:.1f} MB down")
    return Text(" · ".join(parts), style="bold")


def _devices(s: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("device", "tier", "state", "modalities", "blocks and steps", "predicted", "took", "sent"):
        table.add_column(column, justify="right" if column in ("predicted", "took", "sent") else "left")
    for name, d in s.get("devices", {}).items():
        steps = d["steps"]
        blocks = sorted(
            (b for b in steps if b != "shared"), key=lambda b: d["modalities"].index(b) if b in d["modalities"] else 99
        )
        same = len(set(steps.values())) == 1
        work = (
            f"{' '.join(blocks)} x {max(steps.values())}"
            if same and steps
            else " ".join(f"{b}:{steps[b]}" for b in blocks)
        )
        table.add_row(
            name,
            d["tier"],
            Text(d["state"], style=STYLES.get(d["state"], "")),
            str(len(d["modalities"])),
            work,
            f"{d['predicted']:.1f} s" if d["predicted"] else "",
            f"{d['seconds']:.1f} s" if d["seconds"] else "",
            f"{d['bytes'] / 1e3:.0f} kB" if d["bytes"] else "",
        )
    return table


def _blocks(s: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    cohorts = s.get("cohorts", {})
    table.add_column("block")
    for m in cohorts:
        table.add_column(m, justify="right")
    table.add_row("cohort", *(str(n) for n in cohorts.values()))
    table.add_row("trained it", *(str(s.get("trainers", {}).get(m, 0)) for m in cohorts))
    divergence = s.get("divergence", {})
    table.add_row("divergence", *(f"{divergence[m]:.2f}" if m in divergence else "-" for m in cohorts))
    return table
