"""A device's numbers for Prometheus: what its telemetry says, scraped instead of sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# telemetry's name -> (metric, what it is)
GAUGES = {
    "memory_bytes": ("relief_device_memory_bytes", "Resident memory of the device process."),
    "windows": ("relief_device_windows", "Labelled training windows at hand."),
    "outbox_updates": ("relief_device_outbox_updates", "Updates that wait for an answer."),
    "outbox_bytes": ("relief_device_outbox_bytes", "Their size on disk."),
    "watts": ("relief_device_power_watts", "Power draw of the board."),
    "battery_percent": ("relief_device_battery_percent", "Charge of the battery."),
    "predicted_seconds": ("relief_device_predicted_round_seconds", "What the latest round was predicted to take."),
    "measured_seconds": ("relief_device_round_seconds", "What it took."),
    "prediction_error": ("relief_device_prediction_error_ratio", "Median relative error of the predictions."),
    "cpu_share": ("relief_device_cpu_ratio", "Share of a core that training got."),
}
COUNTERS = {
    "cpu_seconds": ("relief_device_cpu_seconds", "CPU time of the device process."),
    "bytes_up": ("relief_device_sent_bytes", "Payload sent."),
    "bytes_down": ("relief_device_received_bytes", "Payload received."),
}
FEW = 20  # sensors or kinds with a series of their own


class DeviceMetrics(Collector):
    """Asks `values` (device_runtime.telemetry.values) whenever it is scraped."""

    def __init__(self, values: Callable[[], dict[str, Any]]) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """Prometheus' metric families; a figure that is not known has none."""
        found = self._values()
        for key, (name, about) in GAUGES.items():
            if found.get(key) is not None:
                yield GaugeMetricFamily(name, about, value=float(found[key]))
        for key, (name, about) in COUNTERS.items():
            if found.get(key) is not None:
                yield CounterMetricFamily(name, about, value=float(found[key]))
        problem = float(bool(found.get("outbox_problem")))
        yield GaugeMetricFamily("relief_device_outbox_problem", "1 while the outbox cannot be written.", value=problem)
        heat = GaugeMetricFamily("relief_device_temperature_celsius", "Temperature by sensor.", labels=["sensor"])
        for sensor, degrees in list(found.get("celsius", {}).items())[:FEW]:
            heat.add_metric([sensor], degrees)
        yield heat
        counts = CounterMetricFamily("relief_device_events", "What happened, by kind.", labels=["kind"])
        for kind, count in list(found.get("counts", {}).items())[:FEW]:
            counts.add_metric([kind], count)
        yield counts
