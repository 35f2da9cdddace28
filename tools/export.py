"""`relief export`: a checkpoint made into an inference kit that a device runs without torch; the one before stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tools.shown import progress

CURRENT, PREVIOUS, PREFIX = "current", "previous", "kit-"

CheckpointPath = Annotated[
    Path | None,
    typer.Argument(help="A checkpoint, or a folder of them, of which the newest is taken.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of kits; `current` in it points to the one in use.")]
Back = Annotated[bool, typer.Option("--back", help="Make the previous kit the current one again.")]


def export(checkpoint: CheckpointPath = None, out: Out = Path("kits"), back: Back = False) -> None:
    """Make ONNX files of a checkpoint, for inference without torch.

    Example: relief export runs/fleet/checkpoints --out kits
    """
    if back:
        typer.echo(f"current: {roll_back(out).name}")
        return
    if checkpoint is None:
        raise ValueError("export: name a checkpoint, or use --back")
    with progress("exporting", 100, "%") as step:
        made = write(checkpoint, out, lambda done: step(100 * done))
    size = sum(file.stat().st_size for file in made.iterdir())
    typer.echo(f"current: {made}  ({size / 1024:.0f} KiB)")


def write(checkpoint: Path, out: Path, step: Callable[[float], object] = lambda done: None) -> Path:
    """Export into `out`/kit-<version>, point `current` to it and `previous` to the one before.

    Raises ValueError for a checkpoint that cannot be used; nothing is changed then.
    """
    from coordinator.checkpoint import MANIFEST, CheckpointError, latest, load
    from models.export import export as export_kit
    from models.kit import Scale

    try:
        found = load(checkpoint) if (checkpoint / MANIFEST).exists() else latest(checkpoint)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    if found is None:
        raise ValueError(f"export: no checkpoint in {checkpoint}")
    scales = found.meta.get("scales", {})
    versions = found.versions or {b: int(v) for b, v in found.meta.get("versions", {}).items()}
    target = out / f"{PREFIX}{found.version:08d}"
    aside = out / f".{target.name}.tmp"
    if target.exists():
        raise ValueError(f"export: {target} is there already; remove it to export it again")
    _remove(aside)
    export_kit(
        found.spec,
        found.blocks,
        found.base,
        aside,
        version=found.version,
        versions=versions,
        scale={m: Scale(tuple(center), tuple(width)) for m, (center, width) in scales.items()},
        progress=step,
    )
    aside.rename(target)
    before = _target(out, CURRENT)
    if before is not None:
        _point(out, PREVIOUS, before)
    _point(out, CURRENT, target.name)
    for old in sorted(out.glob(f"{PREFIX}*")):
        if old.name not in (_target(out, CURRENT), _target(out, PREVIOUS)):
            _remove(old)
    return target


def roll_back(out: Path) -> Path:
    """Exchange `current` and `previous`. ValueError where there is no previous kit."""
    now, before = _target(out, CURRENT), _target(out, PREVIOUS)
    if now is None or before is None:
        raise ValueError(f"export: {out} has no previous kit to go back to")
    _point(out, CURRENT, before)
    _point(out, PREVIOUS, now)
    return out / before


def _target(out: Path, link: str) -> str | None:
    return (out / link).readlink().name if (out / link).is_symlink() else None


def _point(out: Path, link: str, target: str) -> None:
    """Atomic: a reader sees the old target or the new one."""
    fresh = out / f".{link}.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(out / link)


def _remove(folder: Path) -> None:
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
