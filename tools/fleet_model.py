"""Model versions for a fleet: which there are, and devices that go over to one wave by wave, as its scores allow.

Canaries judge by their own labelled windows, with the engine that predicts there, before and after: where the score of
a wave falls by more than the margin, the wave goes back by itself and nothing more is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from protocol.messages import Report
from tools.rollout import Rollout, RolloutFailed, known, waves
from tools.shown import Json, print_json
from tools.steering import Fleet, of_a_fleet

JUDGED = 60.0  # seconds that devices may take to judge their windows
Only = Annotated[list[str] | None, typer.Option(help="Only these devices; repeatable.")]


def macro_f1(reports: Iterable[Report]) -> float | None:
    """Mean F1 over the classes that occur in the pooled confusion matrices; None where nobody judged a window."""
    found = [one for one in map(_confusion, reports) if one is not None]
    if not found or any(one.shape != found[0].shape for one in found):
        return None
    whole = np.sum(found, axis=0)
    hit, there = np.diag(whole), whole.sum(axis=1)
    f1 = 2 * hit / np.maximum(there + whole.sum(axis=0), 1e-12)
    return float(f1[there > 0].mean())


def _confusion(report: Report) -> npt.NDArray[np.float64] | None:
    try:
        counts = np.asarray(report.values.get("confusion", []), float)
    except (ValueError, TypeError):
        return None
    square = counts.ndim == 2 and counts.shape[0] == counts.shape[1]
    return counts if report.ok and square and counts.sum() > 0 else None


@dataclass
class ModelRollout(Rollout):
    """The registered version `version`; `margin` is how far a wave's macro-F1 may fall."""

    version: int = 0
    margin: float = 0.02
    scores: list[tuple[float, float]] = field(default_factory=list)  # of each wave: before, after
    _given: set[str] = field(default_factory=set)

    def told(self) -> str:
        before, after = self.scores[-1]
        return f"predict by version {self.version}, macro-F1 {before:.3f} -> {after:.3f},"

    def give(self, wave: list[str]) -> dict[str, str]:
        before = self._score(wave)
        if before is None:
            return dict.fromkeys(wave, "no labelled windows to judge by; choose devices that have some with --device")
        self._given = set(wave)
        order = self.request("adopt", {"devices": wave, "version": self.version}).id
        self.until(lambda: len(self.reports(wave, order)) == len(wave), self.patience)
        if bad := self._not_done(wave, order):
            return bad
        after = self._score(wave)
        if after is not None and not self._fell(before, after):
            # What a device has labelled since counts as well: looked at once more before the next wave.
            self.until(lambda: any(not self.devices[d].status.online for d in wave), self.watch)
            after = self._score(wave)
        if gone := [d for d in wave if not self.devices[d].status.online]:
            return dict.fromkeys(gone, "did not stay: it is offline")
        if after is None:
            return dict.fromkeys(wave, "could not be judged after it had adopted")
        if self._fell(before, after):
            why = f"macro-F1 fell from {before:.3f} to {after:.3f}, more than {self.margin:g}"
            return {", ".join(wave): why}
        self.scores.append((before, after))
        return {}

    def take_back(self, wave: list[str]) -> list[str]:
        """Only devices that took it up go back: for the others there is nothing to go back from."""
        took = [d for d in wave if d in self._given and self.devices[d].status.release == self.version]
        if took:
            order = self.request("rollback", {"devices": took}).id
            self.until(lambda: len(self.reports(took, order)) == len(took), self.patience)
            if bad := self._not_done(took, order):
                told = "; ".join(f"{device}: {why}" for device, why in bad.items())
                raise RolloutFailed(f"the wave was not well, and did not all go back: {told}")
        return took

    def _not_done(self, wave: Iterable[str], order: str) -> dict[str, str]:
        reports = self.reports(wave, order)
        bad = {device: report.reason for device, report in reports.items() if not report.ok}
        late = {device: f"no answer within {self.patience:g} s" for device in wave if device not in reports}
        return bad | late

    def _score(self, wave: list[str]) -> float | None:
        order = self.order(wave, "evaluate", {"by": "inference"})
        self.until(lambda: len(self.reports(wave, order)) == len(wave), min(self.patience, JUDGED))
        return macro_f1(self.reports(wave, order).values())

    def _fell(self, before: float, after: float) -> bool:
        return after < before - self.margin


def versions_of(fleet: Fleet) -> list[dict[str, Any]]:
    """What the coordinator has registered, the newest first."""
    found = fleet.demand("versions", {}).values.get("versions", [])
    return [one for one in found if isinstance(one, dict)]


@of_a_fleet
def versions(fleet: Fleet, as_json: Json = False) -> None:
    """Show the registered versions of the model and their scores.

    Example: relief fleet versions --config fleet.toml
    """
    found = versions_of(fleet)
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo(f"fleet {fleet.name}: no version is registered yet; every tenth round is, and a run's last one")
        return
    table = Table("version", "held-out F1", "in-subject F1", "loss", "digest", "")
    for one in found:
        marks = [word for word, on in (("best", one.get("best")), ("published", one.get("published"))) if on]
        table.add_row(*_row(one), ", ".join(marks))
    Console().print(table)


def _row(one: Mapping[str, Any]) -> list[str]:
    scores = one.get("scores", {})
    figures = [f"{scores[name]:.3f}" if name in scores else "-" for name in ("held_out", "in_subject")]
    return [str(one["version"]), *figures, f"{one.get('loss', 0.0):.3f}", str(one.get("digest", ""))[:12]]


@of_a_fleet
def adopt(
    fleet: Fleet,
    version: Annotated[int, typer.Argument(help="As `relief fleet versions` shows it.", min=1)],
    canary: Annotated[int, typer.Option(help="So many devices first.")] = 2,
    then: Annotated[str, typer.Option(help="So many at a time after them: a number, or a percentage.")] = "25%",
    watch: Annotated[float, typer.Option(help="Seconds that a wave must stay well before the next.")] = 30.0,
    margin: Annotated[float, typer.Option(help="How far a wave's macro-F1 may fall.", min=0.0, max=1.0)] = 0.02,
    device: Only = None,
    patience: Annotated[float, typer.Option(help="Seconds that a wave may take.")] = 120.0,
) -> None:
    """Have devices predict by a registered version, wave by wave; a wave whose score falls goes back by itself.

    Example: relief fleet adopt 40 --canary 2 --then 25% --config fleet.toml
    """
    rollout = ModelRollout(
        fleet.name, fleet.connection("update"), fleet.identity("update"), patience, watch, typer.echo,
        version=version, margin=margin,
    )  # fmt: skip
    try:
        rollout.open()
        planned = waves(chosen(rollout, device or []), canary, then)
        if not planned:
            typer.echo("nothing to do")
            return
        rollout.run(planned)
    finally:
        rollout.transport.close()


def chosen(rollout: ModelRollout, only: list[str]) -> list[str]:
    """Who gets it: online, not yet on this version, and among `only` if that is said."""
    names = []
    for name in known(rollout.devices, only):
        status = rollout.devices[name].status
        if not status.online:
            rollout.say(f"{name}: offline, left out")
        elif status.release == rollout.version:
            rollout.say(f"{name}: predicts by version {rollout.version} already")
        else:
            names.append(name)
    return names


@of_a_fleet
def rollback(
    fleet: Fleet,
    device: Only = None,
    patience: Annotated[float, typer.Option(help="Seconds that devices may take.")] = 60.0,
) -> None:
    """Have devices that adopted a version predict by what they used before it, at once.

    Example: relief fleet rollback --config fleet.toml
    """
    rollout = ModelRollout(fleet.name, fleet.connection("update"), fleet.identity("update"), patience, say=typer.echo)
    try:
        rollout.open()
        wanted = [n for n in known(rollout.devices, device or []) if rollout.devices[n].status.online]
        if not device:
            wanted = [name for name in wanted if rollout.devices[name].status.release]
        if not wanted:
            typer.echo("nothing to do: no device that is online has adopted a version")
            return
        order = rollout.request("rollback", {"devices": wanted}).id
        rollout.until(lambda: len(rollout.reports(wanted, order)) == len(wanted), patience)
        if bad := rollout._not_done(wanted, order):
            raise RolloutFailed("; ".join(f"{name}: {why}" for name, why in bad.items()))
        typer.echo(f"back on what they used before: {', '.join(wanted)}")
    finally:
        rollout.transport.close()
