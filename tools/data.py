"""`relief data`: fetch, describe, plot and make up recordings."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from sensors.fetch import fetch as fetch_files
from sensors.locate import MADE_UP, NAMES, Found, counted, find
from sensors.originals import write_mhealth, write_pamap2
from sensors.published import PUBLISHED
from sensors.recording import DataSet
from sensors.summary import Gaps, SubjectSummary, summary
from tools.shown import Json, print_json, progress

app = typer.Typer(no_args_is_help=True, help="Fetch, describe, plot and make up recordings.")

Name = Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}.")]


def _root() -> Path:
    return Path(os.environ.get("RELIEF_DATA") or "data")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(PUBLISHED)}.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to put it.", show_default="RELIEF_DATA or ./data, then the name")
    ] = None,
) -> None:
    """Download a data set from UCI, check every file and unpack it. Continues where it broke off.

    Example: relief data fetch dsads
    """
    if name not in PUBLISHED:
        raise ValueError(f"no data set {name!r} to fetch: expected one of {', '.join(PUBLISHED)}")
    published, target, console = PUBLISHED[name], folder or _root() / name, Console()
    console.print(f"[bold]{published.title}[/] from {published.page}")
    console.print(f"Licence: {published.licence}")
    console.print(f"Please cite: {published.citation}")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    watched = Console(stderr=True)
    with Progress(*columns, console=watched, transient=True, disable=not watched.is_terminal) as bar:
        task = bar.add_task(name, total=None, visible=False)
        files = fetch_files(
            published,
            target,
            lambda here, total: bar.update(task, completed=here, total=total or None, visible=True),
            watched.print,
        )
    console.print(f"{len(files)} files checked in {target}")


@app.command()
def info(
    name: Name,
    as_json: Json = False,
) -> None:
    """Subjects, modalities, rates, seconds of every activity, and gaps.

    Example: relief data info dsads
    """
    found = find(name)
    subjects, summaries = found.dataset.subjects(), []
    with progress(f"reading {name}", len(subjects), "subjects") as step:
        for subject in subjects:
            summaries.append(summary(found.dataset, subject))
            step(len(summaries))
    if as_json:
        print_json(_plain(found, summaries))
        return
    console = Console()
    console.print(found.note)
    console.print(_modality_table(found.dataset, summaries))
    console.print(_activity_table(found.dataset, summaries))
    labelled = sum(sum(s.activities.values()) for s in summaries)
    console.print(
        f"{found.dataset.name}: {counted(len(summaries), 'subject')}, "
        f"{len(found.dataset.modalities)} modalities, "
        f"{labelled / 60:.1f} labelled minutes at {found.dataset.rate_hz:.4g} Hz"
    )


@app.command()
def plot(
    name: Name,
    subject: Annotated[str | None, typer.Option(help="Whose recording.", show_default="the first")] = None,
    begin: Annotated[float, typer.Option(help="Seconds to skip.", min=0)] = 0.0,
    seconds: Annotated[float | None, typer.Option(help="Seconds to show.", show_default="all", min=0.1)] = None,
    out: Annotated[Path | None, typer.Option(help="The PNG.", show_default="NAME-SUBJECT.png")] = None,
) -> None:
    """Draw a strip chart, one strip a modality, as a PNG.

    Example: relief data plot mhealth --subject 1 --begin 600 --seconds 30
    """
    from tools.strip_chart import strip_chart

    dataset = find(name).dataset
    who = subject or dataset.subjects()[0]
    if who not in dataset.subjects():
        raise ValueError(f"{dataset.name} has no subject {who!r}: expected one of {', '.join(dataset.subjects())}")
    file = out or Path(f"{dataset.name}-{who}.png")
    with progress(f"drawing {who}"):
        activities = strip_chart(dataset, who, file, begin, seconds)
    print(f"{file}: {len(dataset.modalities)} modalities, activities shown: {activities}")


@app.command()
def generate(
    name: Annotated[str, typer.Argument(help="pamap2 or mhealth.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to put it.", show_default="RELIEF_DATA or ./data, then the name")
    ] = None,
    subjects: Annotated[int, typer.Option(min=1, max=9, help="People to make up.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    bout: Annotated[float, typer.Option(help="Seconds of each activity at a time.", min=1)] = 30.0,
    bouts: Annotated[int, typer.Option(help="Times each activity is done.", min=1)] = 2,
) -> None:
    """Write made-up recordings in the original format of a data set, to try things without the real ones.

    Example: relief data generate pamap2 --folder made-up/pamap2 --subjects 4
    """
    writers = {"pamap2": write_pamap2, "mhealth": write_mhealth}
    if name not in writers:
        raise ValueError(f"cannot make up {name!r}: expected one of {', '.join(writers)}")
    target = folder or _root() / name
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty: made-up files are not mixed with others; name another --folder")
    with progress(f"writing {name}", subjects, "subjects") as step:
        files = writers[name](target, subjects=subjects, seed=seed, bout_s=bout, bouts=bouts, progress=step)
    (target / MADE_UP).write_text(f"Recordings in the format of {name}, made up by `relief data generate`.\n")
    print(f"{len(files)} made-up files below {target}, {sum(f.stat().st_size for f in files) / 1e6:.0f} MB")


def _modality_table(dataset: DataSet, summaries: list[SubjectSummary]) -> Table:
    table = Table("modality", "channels", "unit", "Hz", "subjects", "gaps left", "missing", "longest", box=None)
    for m in dataset.modalities:
        owners = [s for s in summaries if m.name in s.gaps]
        total = sum((s.gaps[m.name] for s in owners), Gaps())
        table.add_row(
            m.name,
            " ".join(m.channels) if len(m.channels) <= 3 else f"{m.channels[0]} to {m.channels[-1]}",
            m.unit,
            f"{m.rate_hz:.4g}",
            str(len(owners)),
            str(total.count),
            f"{total.seconds:.1f} s",
            f"{total.longest:.1f} s",
        )
    return table


def _activity_table(dataset: DataSet, summaries: list[SubjectSummary]) -> Table:
    table = Table("seconds of", *(f"{s.subject}" for s in summaries), "all", box=None)
    for activity in dataset.activities:
        each = [s.activities.get(activity, 0.0) for s in summaries]
        table.add_row(activity, *(f"{seconds:.0f}" for seconds in each), f"{sum(each):.0f}")
    unlabelled = [s.unlabelled for s in summaries]
    table.add_row("(unlabelled)", *(f"{seconds:.0f}" for seconds in unlabelled), f"{sum(unlabelled):.0f}")
    return table


def _plain(found: Found, summaries: list[SubjectSummary]) -> dict[str, object]:
    return {
        "name": found.dataset.name,
        "path": None if found.path is None else str(found.path),
        "note": found.note,
        "rate_hz": found.dataset.rate_hz,
        "window_s": found.dataset.window_s,
        "overlap": found.dataset.overlap,
        "modalities": [asdict(m) for m in found.dataset.modalities],
        "subjects": [asdict(s) | {"unlabelled": s.unlabelled} for s in summaries],
    }
