"""`relief report`: one self-contained HTML page with the plots of a run, a demo or an experiment."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.shown import Json, print_json, progress

SCORES = {"in_subject": "F1 in-subject", "held_out": "F1 held-out", "rare_only": "F1 rare modality alone"}
COLOURS = ("#2f7ed8", "#d1495b", "#1f9254", "#b57614", "#9467bd", "#0d8f8f", "#d0549b", "#7a8592")
STYLE = """
:root{color-scheme:light dark}body{font:16px/1.55 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #8886;text-align:right}
th:first-child,td:first-child{text-align:left}figure{margin:1.5rem 0;background:#fff;border-radius:.5rem;padding:.5rem}
figure img{width:100%}pre{white-space:pre-wrap}
"""


@dataclass(frozen=True)
class Run:
    """One coordinator's record: its rounds and evaluations, seconds since its first round began."""

    name: str
    rounds: list[dict[str, Any]]
    scores: list[dict[str, Any]]

    @classmethod
    def read(cls, file: Path, name: str) -> Run:
        """From a metrics.jsonl; a last line that was cut off is left out."""
        rounds: list[dict[str, Any]] = []
        scores: list[dict[str, Any]] = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
            except json.JSONDecodeError:
                continue
            (rounds if one.get("kind") == "round" else scores).append(one)
        zero = rounds[0]["began"] if rounds else 0.0
        return cls(name, rounds, [{**s, "at": s["at"] - zero} for s in scores])


def report(
    run: Annotated[Path, typer.Argument(help="A run's, a demo's or an experiment's folder.", exists=True)],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in that folder.")] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page with the plots and the table of a run; nothing in it is loaded from elsewhere.

    Example: relief report runs/demo-20260301-120000
    """
    if (run / "experiment.json").is_file():
        page = _experiment(run)
        table: list[dict[str, Any]] = []
    else:
        runs = find(run)
        table = [summary(one) for one in runs]
        page = "" if as_json else _page(run.resolve().name, _table(table) + _figures(runs))
    if as_json:
        print_json(table)
        return
    target = out or run / "report.html"
    target.write_text(page, encoding="utf-8")
    typer.echo(f"report: {target}")


def find(folder: Path) -> list[Run]:
    """Every record below `folder`. ValueError where there is none."""
    files = sorted(folder.rglob("metrics.jsonl"), key=lambda f: f.stat().st_mtime)
    runs = [Run.read(f, str(f.resolve().parent.relative_to(folder.resolve().parent))) for f in files]
    runs = [run for run in runs if run.rounds]
    if not runs:
        raise ValueError(
            f"{folder} holds no metrics.jsonl with a round in it: give the folder of a coordinator, of a demo "
            "(runs/demo-...) or of an experiment"
        )
    return runs


def summary(run: Run) -> dict[str, Any]:
    """The run in one row: rounds, seconds, joules, bytes and final scores (mean of the last three evaluations)."""
    row: dict[str, Any] = {
        "run": run.name,
        "rounds": len(run.rounds),
        "seconds": round(run.rounds[-1]["ended"] - run.rounds[0]["began"], 1),
        "joules": round(sum(r["joules"] for r in run.rounds), 1),
        "power": ", ".join(sorted({p for r in run.rounds for p in r["power"]})) or "none",
        "MB up": round(sum(r["bytes_up"] for r in run.rounds) / 1e6, 2),
        "MB down": round(sum(r["bytes_down"] for r in run.rounds) / 1e6, 2),
        "clock": run.rounds[-1].get("clock", "wall"),
    }
    for key, name in SCORES.items():
        last = [s[key] for s in run.scores[-3:] if key in s]
        row[name] = round(sum(last) / len(last), 3) if last else None
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = ""
    for row in rows:
        cells = ("—" if value is None else str(value) for value in row.values())
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figures(runs: list[Run]) -> str:
    try:
        import matplotlib
    except ImportError:
        raise ImportError('the pictures need matplotlib: pip install "relief-edge[plot]"') from None
    matplotlib.use("Agg")
    drawn = []
    parts: tuple[Callable[[], str], ...] = (
        lambda: _scores(runs, "at", "seconds"), lambda: _scores(runs, "round", "rounds"),
        lambda: _divergence(runs), lambda: _spent(runs),
    )  # fmt: skip
    with progress("drawing", len(parts), "figures") as step:
        for part in parts:
            drawn.append(part())
            step(len(drawn))
    return "".join(drawn)


def _scores(runs: list[Run], x: str, label: str) -> str:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained", sharey=True)
    for axis, (key, name) in zip(axes, SCORES.items(), strict=True):
        for run, colour in zip(runs, _colours(), strict=False):
            seen = [(s[x], s[key]) for s in run.scores if key in s]
            dots = "." if len(seen) < 40 else None  # more of them hide the line
            axis.plot([a for a, _ in seen], [v for _, v in seen], color=colour, marker=dots, label=run.name)
        axis.set(title=name, xlabel=label, ylim=(0, 1))
        _grid(axis, rounds=x == "round")
    axes[0].legend(fontsize=8)
    return _figure(figure, f"F1 over {label}")


def _divergence(runs: list[Run]) -> str:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(runs), figsize=(6.5 * len(runs), 3.6), layout="constrained", squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        blocks = dict.fromkeys(b for r in run.rounds for b in r["divergence"])
        for block, colour in zip(blocks, _colours(), strict=False):
            seen = [(r["round"], r["divergence"][block]) for r in run.rounds if block in r["divergence"]]
            axis.plot([r for r, _ in seen], [v for _, v in seen], label=block, color=colour)
        axis.set(title=run.name, xlabel="round", ylabel="divergence", ylim=(0, 1.05))
        _grid(axis, rounds=True)
        axis.legend(fontsize=7)
    return _figure(figure, "Divergence per block over rounds")


def _spent(runs: list[Run]) -> str:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 3.6), layout="constrained")
    for run, colour in zip(runs, _colours(), strict=False):
        for axis, keys, scale in ((axes[0], ("joules",), 1.0), (axes[1], ("bytes_up", "bytes_down"), 1e6)):
            own = _sums([sum(r[k] for k in keys) / scale for r in run.rounds])
            axis.plot([r["round"] for r in run.rounds], own, color=colour, label=run.name)
            other = _sums([sum(r.get("fedavg", {}).get(k, 0.0) for k in keys) / scale for r in run.rounds])
            if other[-1]:
                about = f"{run.name}: FedAvg, estimated"
                axis.plot([r["round"] for r in run.rounds], other, color=colour, linestyle=":", label=about)
    axes[0].set(title="joules above idle", xlabel="round")
    axes[1].set(title="megabytes up and down", xlabel="round")
    for axis in axes:
        _grid(axis, rounds=True)
        axis.legend(fontsize=7)
    return _figure(figure, "Energy and traffic beside the estimate for FedAvg")


def _grid(axis: Any, *, rounds: bool) -> None:
    """Lines behind the curves; rounds are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.grid(alpha=0.3)
    if rounds:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _sums(values: list[float]) -> list[float]:
    total, sums = 0.0, []
    for value in values:
        total += value
        sums.append(total)
    return sums


def _colours() -> list[str]:
    return list(COLOURS) * 4


def _figure(figure: Any, about: str) -> str:
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return _image(buffer.getvalue().encode(), "image/svg+xml", about)


def _image(data: bytes, kind: str, about: str) -> str:
    encoded, about = base64.b64encode(data).decode(), html.escape(about)
    return f'<figure><img alt="{about}" src="data:{kind};base64,{encoded}"><figcaption>{about}</figcaption></figure>'


def _experiment(folder: Path) -> str:
    """The experiment's own report with its curves inside."""
    from tools.lab.report import report as write

    headline = write(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    pictures = "".join(_image(p.read_bytes(), "image/png", p.stem) for p in sorted(folder.glob("curves-*.png")))
    body = f"<p><strong>{html.escape(headline)}</strong></p>{pictures}<pre>{html.escape(text)}</pre>"
    return _page(folder.resolve().name, body)


def _page(title: str, body: str) -> str:
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{body}</main></body></html>\n"
    )
