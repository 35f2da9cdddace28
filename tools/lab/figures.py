"""Curves of an experiment as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.lab.scores import Curve, RegretCurve

PANELS = (("held_out", "held-out F1"), ("in_subject", "in-subject F1"), ("rare_only", "F1 with only the rare modality"))


def draw(curves: Sequence[Curve], titles: dict[str, str], path: Path, heading: str) -> list[Path]:
    """Scores over simulated time, mean over folds and seeds with the band between the 10th and 90th percentile.

    Writes `path` with .png and .svg behind it. ImportError, with the line that installs it, without matplotlib.
    """
    pyplot = _pyplot()
    with pyplot.rc_context({"svg.hashsalt": "relief", "font.size": 9}):
        figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 4.2), constrained_layout=True)
        for axis, (score, label) in zip(axes, PANELS, strict=True):
            for method in dict.fromkeys(c.method for c in curves):
                mine = [c for c in curves if c.method == method]
                at, middle, low, high = _band(mine, score)
                (line,) = axis.plot(at, middle, label=titles.get(method, method), linewidth=1.4)
                axis.fill_between(at, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
            axis.set_xscale("log")
            axis.set_xlabel("simulated seconds")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        figure.suptitle(heading)
        return _written(pyplot, figure, path)


def draw_regret(curves: Sequence[RegretCurve], titles: dict[str, str], path: Path, heading: str) -> list[Path]:
    """Cumulative regret over rounds, as far as each method's shortest run goes; files and errors as `draw`."""
    pyplot = _pyplot()
    with pyplot.rc_context({"svg.hashsalt": "relief", "font.size": 9}):
        figure, axis = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
        for method in dict.fromkeys(c.method for c in curves):
            mine = [c.cumulative() for c in curves if c.method == method]
            rounds = min(map(len, mine))
            rows = np.array([one[:rounds] for one in mine])
            at = np.arange(1, rounds + 1)
            (line,) = axis.plot(at, rows.mean(axis=0), label=titles.get(method, method), linewidth=1.4)
            low, high = np.percentile(rows, (10, 90), axis=0)
            axis.fill_between(at, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axis.set_xlabel("round")
        axis.set_ylabel("cumulative regret, sum of U log(1 + s)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
        figure.suptitle(heading)
        return _written(pyplot, figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError("the pictures need matplotlib: pip install 'relief-edge[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _written(pyplot: Any, figure: Any, path: Path) -> list[Path]:
    written = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    for file in written:
        figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)
    return written


def _band(curves: Sequence[Curve], score: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Runs on one time axis: as far as the shortest run goes, each held at its last evaluation in between."""
    begin = max(c.columns["seconds"][0] for c in curves)
    end = min(c.columns["seconds"][-1] for c in curves)
    at = np.geomspace(begin, max(end, begin * 1.0001), 120)
    rows = [c.columns[score][np.searchsorted(c.columns["seconds"], at, side="right") - 1] for c in curves]
    return at, np.mean(rows, axis=0), np.percentile(rows, 10, axis=0), np.percentile(rows, 90, axis=0)
