"""What the demo ends with: tables on the terminal and one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.demo.plan import DemoDevice, Plan


@dataclass(frozen=True)
class Run:
    """One method's record: rounds and scores as the coordinator wrote them; times in seconds since round 1 began."""

    method: str
    rounds: list[dict[str, Any]]
    scores: list[dict[str, Any]]

    @classmethod
    def read(cls, method: str, folder: Path) -> Run:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rounds = [line for line in lines if line["kind"] == "round"]
        zero = rounds[0]["began"] if rounds else 0.0
        scores = [{**line, "at": line["at"] - zero} for line in lines if line["kind"] == "scores"]
        return cls(method, rounds, scores)

    def final(self, name: str) -> float:
        """Mean of the last three evaluations."""
        last = [s[name] for s in self.scores[-3:]]
        return sum(last) / len(last) if last else 0.0

    def reached(self, name: str, target: float) -> float | None:
        """Seconds until the score first was at or above `target`; None if it never was."""
        return next((s["at"] for s in self.scores if s[name] >= target), None)

    @property
    def seconds(self) -> float:
        return self.rounds[-1]["ended"] - self.rounds[0]["began"] if self.rounds else 0.0


def faster(relief: Run, other: Run, name: str, target: float) -> tuple[float | None, float | None, str]:
    """Seconds to `target` of both, and their ratio in words; `> N x` where the other never got there."""
    ours, theirs = relief.reached(name, target), other.reached(name, target)
    if ours is None:
        return ours, theirs, "RELIEF did not get there"
    if theirs is None:
        return ours, theirs, f"> {other.seconds / ours:.1f} x"
    return ours, theirs, f"{theirs / ours:.1f} x"


def show(console: Console, plan: Plan, relief: Run, fedavg: Run, shares: dict[str, float]) -> str:
    """Print both tables; returns the headline."""
    console.print(_devices(plan, relief, shares))
    console.print(_overall(relief, fedavg))
    return headline(relief, fedavg)


def headline(relief: Run, fedavg: Run) -> str:
    """How soon RELIEF was where FedAvg ended, in a sentence."""
    if not fedavg.scores:
        return (
            f"demo: FedAvg was not evaluated in its {len(fedavg.rounds)} rounds, so there is no score to compare with"
        )
    target = fedavg.final("held_out")
    ours, _, ratio = faster(relief, fedavg, "held_out", target)
    if ours is None:
        return (
            f"demo: RELIEF did not reach FedAvg's held-out F1 of {target:.3f} in its {len(relief.rounds)} rounds, "
            f"{relief.seconds:.0f} s on the wall clock"
        )
    return f"demo: RELIEF reached FedAvg's held-out F1 of {target:.3f} {ratio} as fast, on the wall clock"


def _devices(plan: Plan, run: Run, shares: dict[str, float]) -> Table:
    table = Table(
        title="RELIEF, per device: whom it is on, medians over its rounds, share of a CPU core it got",
        title_justify="left",
        header_style="bold",
    )
    for column in ("device", "on", "modalities", "blocks", "steps", "seconds", "kB up", "CPU"):
        left = column in ("device", "on", "modalities")
        table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=column != "modalities")
    everything = max(len(d.modalities) for d in plan.devices)
    for d in plan.devices:
        mine = [r["devices"][d.id] for r in run.rounds if d.id in r["devices"]]
        if not mine:
            table.add_row(d.id, d.subject, _owned(d, everything), "-", "-", "-", "-", "-")
            continue
        table.add_row(
            d.id,
            d.subject,
            _owned(d, everything),
            f"{median(len(m['steps']) - 1 for m in mine):.0f} of {len(d.modalities)}",
            f"{median(max(m['steps'].values()) for m in mine):.0f}",
            f"{median(m['seconds'] for m in mine):.2f}",
            f"{median(m['bytes'] for m in mine) / 1e3:.0f}",
            f"{shares[d.id]:.2f}" if d.id in shares else "-",
        )
    return table


def _owned(device: DemoDevice, everything: int) -> str:
    """Its modalities; of those that own everything only how many, where a list would fill the screen."""
    if len(device.modalities) == everything > 4:
        return f"all {everything}"
    return ", ".join(device.modalities)


def _overall(relief: Run, fedavg: Run) -> Table:
    table = Table(title="Overall (wall clock, one seed)", title_justify="left", header_style="bold")
    table.add_column("")
    for column in ("RELIEF", "FedAvg", ""):
        table.add_column(column, justify="right")
    names = {
        "in_subject": "F1 in-subject",
        "held_out": "F1 held-out subjects",
        "rare_owners": "F1 rare modality: its owners",
        "rare_only": "F1 rare modality: alone",
        "rare_drop": "F1 rare modality: lost without it",
    }
    for name, about in names.items():
        a, b = relief.final(name), fedavg.final(name)
        points = f"{100 * (a - b):+.1f} points" if relief.scores and fedavg.scores else ""
        table.add_row(about, *(f"{run.final(name):.3f}" if run.scores else "-" for run in (relief, fedavg)), points)
    table.add_row("rounds", str(len(relief.rounds)), str(len(fedavg.rounds)), "")
    table.add_row("seconds", f"{relief.seconds:.0f}", f"{fedavg.seconds:.0f}", "")
    for what, key in (("MB up", "bytes_up"), ("MB down", "bytes_down")):
        a, b = (sum(r[key] for r in run.rounds) / 1e6 for run in (relief, fedavg))
        table.add_row(what, f"{a:.1f}", f"{b:.1f}", "")
    for owner, run in (("FedAvg", fedavg), ("RELIEF", relief)):
        if not run.scores:
            continue
        target = run.final("held_out")
        ours, theirs, ratio = faster(relief, fedavg, "held_out", target)
        table.add_row(
            f"seconds to {owner}'s held-out {target:.3f}",
            f"{ours:.1f}" if ours is not None else "-",
            f"{theirs:.1f}" if theirs is not None else "never",
            ratio,
        )
    return table


def picture(path: Path, plan: Plan, runs: Sequence[Run]) -> None:
    """F1 over seconds for both methods, and RELIEF's divergence per block over rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    colours = {"RELIEF": "#1b6ca8", "FedAvg": "#c8553d"}
    for axis, name, title in (
        (left, "held_out", "held-out subjects"),
        (middle, "rare_only", f"rare modality alone ({plan.rare})"),
    ):
        for run in runs:
            at, values = [s["at"] for s in run.scores], [s[name] for s in run.scores]
            axis.plot(at, values, marker="o", markersize=3, color=colours[run.method], label=run.method)
        axis.set(title=f"macro-F1, {title}", xlabel="seconds (wall clock)", ylim=(0, 1))
        axis.legend(loc="lower right")
        axis.grid(alpha=0.3)
    blocks = sorted({b for r in runs[0].rounds for b in r["divergence"]})
    for block in blocks:
        seen = [(r["round"], r["divergence"][block]) for r in runs[0].rounds if block in r["divergence"]]
        style = {"color": "0.6", "linestyle": "--"} if block == "shared" else {}
        right.plot([r for r, _ in seen], [d for _, d in seen], label=block, **style)
    right.set(title="RELIEF: disagreement within each cohort", xlabel="round", ylabel="divergence D'", ylim=(0, 1.05))
    right.legend(loc="lower left", fontsize=8)
    right.grid(alpha=0.3)
    figure.suptitle(f"{plan.dataset}: 8 devices in 3 tiers, held out: subject {', '.join(plan.held_out)}")
    figure.savefig(path, dpi=110)
    plt.close(figure)
