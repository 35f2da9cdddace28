"""A strip chart of recordings: one strip a modality, one colour an activity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sensors.recording import DataSet, Recording
from sensors.windows import runs

STRIP_IN = 1.1  # inches of height
MOST_POINTS = 4000  # a line; more cannot be seen
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")


def strip_chart(dataset: DataSet, subject: str, file: Path, begin_s: float = 0.0, seconds: float | None = None) -> int:
    """Draw `seconds` of a subject's recordings from `begin_s` on, one after the other, into a PNG.

    Returns the number of activities shown. ValueError where there is nothing to show.
    """
    from matplotlib.figure import Figure  # an extra, and slow to import

    times, labels, streams = _stretch(dataset, subject, begin_s, seconds)
    names = list(streams)
    figure = Figure(figsize=(12, 1.2 + STRIP_IN * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    stride = -(-len(times) // MOST_POINTS)
    units = {m.name: m for m in dataset.modalities}
    shown: dict[int, str] = {}
    for ax, name in zip(axes, names, strict=True):
        for n, channel in enumerate(units[name].channels):
            ax.plot(times[::stride], streams[name][::stride, n], lw=0.6, color=COLOURS[n % 10], label=channel)
        for begin, end, label in runs(labels):
            shown.setdefault(label, COLOURS[label % len(COLOURS)])
            ax.axvspan(times[begin], times[end - 1], color=shown[label], alpha=0.13, lw=0)
        unit = units[name].unit.replace(", ", "\n")
        ax.set_ylabel(f"{name}\n{unit}", fontsize=7, rotation=0, ha="right", va="center")
        ax.tick_params(labelsize=7)
        ax.margins(x=0)
        columns = -(-len(units[name].channels) // 3)
        ax.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, frameon=False)
    axes[-1].set_xlabel("seconds", fontsize=8)
    for begin, end, label in runs(labels):
        if times[end - 1] - times[begin] > (times[-1] - times[0]) / 30:
            middle = (times[begin] + times[end - 1]) / 2
            axes[0].annotate(
                dataset.activities[label].replace("_", " "),
                (middle, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=6,
                rotation=20,
            )
    figure.suptitle(f"{dataset.name}, subject {subject}", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return len(shown)


def _stretch(
    dataset: DataSet, subject: str, begin_s: float, seconds: float | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Seconds, labels and streams of the part to show; recordings follow each other without their pauses."""
    first = round(begin_s * dataset.rate_hz)
    last = None if seconds is None else first + round(seconds * dataset.rate_hz)
    parts: list[Recording] = []
    samples = 0
    for recording in dataset.recordings(subject):
        parts.append(recording)
        samples += len(recording.labels)
        if last is not None and samples >= last:
            break
    names = [m.name for m in dataset.modalities if any(m.name in r.streams for r in parts)]
    labels = np.concatenate([r.labels for r in parts])[first:last]
    if not len(labels):
        raise ValueError(f"subject {subject} has {samples / dataset.rate_hz:.0f} s, nothing from {begin_s:g} s on")
    channels = {m.name: len(m.channels) for m in dataset.modalities}
    streams = {
        name: np.concatenate(
            [r.streams.get(name, np.full((len(r.labels), channels[name]), np.nan, np.float32)) for r in parts]
        )[first:last]
        for name in names
    }
    return begin_s + np.arange(len(labels)) / dataset.rate_hz, labels, streams
