"""What the command shows: one JSON document where it is asked for, progress where somebody watches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, and nothing else there.")]


def print_json(value: Any) -> None:
    """One JSON document; a table is a list with an object per row."""
    typer.echo(json.dumps(value, indent=1, default=str))


@contextmanager
def progress(what: str, total: float | None = None, unit: str = "") -> Iterator[Callable[..., None]]:
    """A bar on standard error with the time left while the block runs; nothing where that is no terminal.

    total    what `step` reaches at the end; None: not known, and the bar shows only that something is done
    unit     of `total`, shown beside it

    Yields step(done, said=""): how far it is, and what comes now.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    count = [] if total is None else [TextColumn(f"{{task.completed:.0f}} of {{task.total:.0f}} {unit}".rstrip())]
    clock = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), *count, clock)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def step(done: float | None = None, said: str = "") -> None:
            bar.update(task, completed=done, description=f"{what}: {said}" if said else what)

        yield step
