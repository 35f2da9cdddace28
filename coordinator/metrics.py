"""The fleet's numbers for Prometheus, made from the summary; no label takes a device's name, so series stay few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATES = ("idle", "ready", "training", "done", "offline", "declined", "quarantined")
# What can go wrong without ending the coordinator.
ALARMS = ("disk", "checkpoint", "history", "versions", "listener", "broker", "budget")
KINDS = 20  # kinds of refusals with a series of their own; the rest is "other"


class FleetMetrics(Collector):
    """Takes summaries in, gives the latest out when it is scraped."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}

    def take(self, round: int, fields: dict[str, Any]) -> None:
        """A summary, as it was published."""
        self._fields = {**fields, "round": round}

    def collect(self) -> Iterator[Metric]:
        """Prometheus' metric families."""
        fields = self._fields
        if fields:
            yield from _rounds(fields)
            yield from _fleet(fields)
            yield from _model(fields)
            yield from _spent(fields)


def _rounds(f: dict[str, Any]) -> Iterator[Metric]:
    yield CounterMetricFamily("relief_rounds", "Rounds that were committed.", value=f["round"] - 1)
    yield GaugeMetricFamily("relief_paused", "1 while an operator holds the rounds.", value=float(f["paused"]))
    if f["last_seconds"] is not None:
        yield GaugeMetricFamily(
            "relief_round_duration_seconds", "Wall clock of the latest round.", value=f["last_seconds"]
        )
        yield GaugeMetricFamily("relief_loss", "Training loss of the latest round.", value=f["loss"])
    trail = f.get("trail") or []
    if trail:
        missing = trail[-1]["assigned"] - trail[-1]["updates"]
        yield GaugeMetricFamily("relief_round_missing_updates", "Assigned devices without an update.", value=missing)
        yield GaugeMetricFamily("relief_round_partial_updates", "Updates cut short.", value=trail[-1]["partial"])


def _fleet(f: dict[str, Any]) -> Iterator[Metric]:
    counts = dict.fromkeys(STATES, 0)
    for device in f["devices"].values():
        counts[device["state"]] = counts.get(device["state"], 0) + 1
    devices = GaugeMetricFamily("relief_devices", "Devices by state.", labels=["state"])
    for state, count in counts.items():
        devices.add_metric([state], count)
    yield devices
    cohorts = GaugeMetricFamily("relief_cohort_devices", "Devices online per modality.", labels=["modality"])
    for modality, count in f["cohorts"].items():
        cohorts.add_metric([modality], count)
    yield cohorts
    yield _labelled("relief_refused_messages", "Refused messages by kind.", "kind", _few(f.get("refused", {})))
    alarms = GaugeMetricFamily("relief_alarm", "1 for every alarm that is raised.", labels=["alarm"])
    for name in ALARMS:
        alarms.add_metric([name], float(name in f.get("alarms", {})))
    yield alarms


def _model(f: dict[str, Any]) -> Iterator[Metric]:
    divergence = GaugeMetricFamily("relief_block_divergence", "Divergence of a block's cohort.", labels=["block"])
    for block, value in f["divergence"].items():
        divergence.add_metric([block], value)
    yield divergence
    scores = GaugeMetricFamily("relief_f1_ratio", "Macro-F1 of the latest evaluation.", labels=["score"])
    for name, value in f["scores"].items():
        scores.add_metric([name], value)
    yield scores


def _spent(f: dict[str, Any]) -> Iterator[Metric]:
    yield CounterMetricFamily("relief_energy_joules", "Energy above idle, by the devices.", value=f["joules"])
    yield CounterMetricFamily("relief_received_bytes", "Payload of updates.", value=f["bytes_up"])
    yield CounterMetricFamily("relief_sent_bytes", "Payload of blocks, once for all.", value=f["bytes_down"])
    last = (f.get("trail") or [{}])[-1].get("fedavg") or {}
    if last:
        about = "Estimate: the latest round under FedAvg, "
        yield GaugeMetricFamily("relief_fedavg_round_energy_joules", about + "energy.", value=last["joules"])
        size = last["bytes_up"] + last["bytes_down"]
        yield GaugeMetricFamily("relief_fedavg_round_bytes", about + "traffic.", value=size)


def _few(counts: dict[str, int]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in ordered[KINDS:])
    return dict(ordered[:KINDS]) | ({"other": rest} if rest else {})


def _labelled(name: str, about: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
