"""Prometheus endpoints, rules, the dashboard for Grafana, and logs."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.synthetic_fleet import SyntheticFleet
from tools import log as logs

pytest.importorskip("prometheus_client", reason="the extra metrics is not installed")

from coordinator.metrics import KINDS, FleetMetrics
from device_runtime.metrics import DeviceMetrics
from tools.metrics.endpoint import address, endpoint

HERE = Path(__file__).parent.parent / "tools" / "metrics"
TELEMETRY = {
    "memory_bytes": 5e7, "cpu_seconds": 3.5, "windows": 120, "outbox_updates": 1, "outbox_bytes": 1000, "bytes_up": 10,
    "bytes_down": 20, "counts": {"refused messages": 2}, "watts": 7.25, "celsius": {"cpu": 51.0},
    "predicted_seconds": 1.0, "measured_seconds": 1.2, "prediction_error": 0.1,
}  # fmt: skip


def fleet_after(rounds: int, **changes: Any) -> FleetMetrics:
    fleet = SyntheticFleet(6)
    for _ in range(rounds):
        fleet.open()
        fleet.finish()
    metrics = FleetMetrics()
    said = fleet.summary()
    metrics.take(said.round, {**said.fields, **changes})
    return metrics


def scrape(collector: Any) -> str:
    port, end = endpoint(collector, "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    finally:
        end()


def test_a_fleet_is_scraped_in_prometheus_words() -> None:
    text = scrape(fleet_after(3, refused={"block torso": 2}))
    for line in (
        "relief_rounds_total 3.0",
        'relief_devices{state="ready"} 6.0',
        'relief_cohort_devices{modality="torso"}',
        'relief_refused_messages_total{kind="block torso"} 2.0',
        'relief_alarm{alarm="disk"} 0.0',
        "relief_fedavg_round_energy_joules 15.6",
    ):
        assert line in text


def test_every_alarm_has_a_series_raised_or_not() -> None:
    named = ("disk", "checkpoint", "history", "versions", "listener", "broker", "budget")
    for raised in (None, *named):
        text = scrape(fleet_after(1, alarms={raised: "no space"} if raised else {}))
        for name in named:
            assert f'relief_alarm{{alarm="{name}"}} {float(name == raised)}' in text


def test_before_the_first_summary_there_is_nothing_to_scrape() -> None:
    assert scrape(FleetMetrics()) == ""


def test_kinds_of_refusals_cannot_grow_without_bound() -> None:
    text = scrape(fleet_after(1, refused={f"kind {n}": 1 for n in range(100)}))
    assert text.count("relief_refused_messages_total{") == KINDS + 1
    assert f'relief_refused_messages_total{{kind="other"}} {100 - KINDS}.0' in text


def test_no_series_of_the_coordinator_bears_a_devices_name() -> None:
    assert "hub-1" not in scrape(fleet_after(2))


def test_a_device_is_scraped_and_what_it_does_not_know_has_no_series() -> None:
    text = scrape(DeviceMetrics(lambda: TELEMETRY))
    assert "relief_device_power_watts 7.25" in text
    assert 'relief_device_temperature_celsius{sensor="cpu"} 51.0' in text
    assert "relief_device_battery_percent" not in text


def test_promtool_accepts_what_is_scraped_the_rules_and_their_tests() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    for text in (scrape(fleet_after(3)), scrape(DeviceMetrics(lambda: TELEMETRY))):
        told = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, timeout=30)
        assert told.returncode == 0, told.stderr + told.stdout
    for check in (("check", "rules", "relief.rules.yml"), ("test", "rules", "relief.tests.yml"),
                  ("check", "config", "prometheus.yml")):  # fmt: skip
        told = subprocess.run([promtool, *check], cwd=HERE / "prometheus", text=True, capture_output=True, timeout=30)
        assert told.returncode == 0, told.stderr + told.stdout


def test_rules_and_grafana_ask_only_for_metrics_that_exist() -> None:
    text = scrape(fleet_after(3, refused={"x": 1})) + scrape(DeviceMetrics(lambda: TELEMETRY))
    known = set(re.findall(r"^(relief_\w+)", text, re.MULTILINE))
    board = json.loads((HERE / "grafana" / "relief.json").read_text())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    asked += (HERE / "prometheus" / "relief.rules.yml").read_text()
    assert set(re.findall(r"\brelief_\w+", asked)) <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("text", ["", "host", "host:", "host:http", "host:70000"])
def test_an_address_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        address(text)


def test_addresses() -> None:
    assert address(":9464") == ("127.0.0.1", 9464)
    assert address("[::1]:9464") == ("::1", 9464)


@pytest.fixture
def logging_kept() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before[0], before[1]
    logs.unbind()


def test_logs_are_json_where_no_terminal_is_with_device_and_round(logging_kept: None) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, device="band-1", fleet="f")
    logging.getLogger("relief.device").info("round %d: training %s", 7, {"ecg": 3})
    line = json.loads(stream.getvalue())
    assert (line["device"], line["fleet"], line["round"], line["level"]) == ("band-1", "f", 7, "info")
    assert line["event"] == "round 7: training {'ecg': 3}"


def test_logs_are_lines_for_people_where_they_are_wanted(logging_kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIEF_LOG", "human")
    stream = io.StringIO()
    logs.configure(stream=stream, device="band-1")
    logging.getLogger("relief").warning("block torso: odd")
    assert "block torso: odd" in stream.getvalue()
    assert "\x1b[" not in stream.getvalue(), "no colour where there is no terminal"


def test_an_exception_is_logged_from_any_thread(logging_kept: None) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, device="band-1")

    def fail() -> None:
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("relief").exception("it failed")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "ValueError: broken" in stream.getvalue() and "band-1" in stream.getvalue()
