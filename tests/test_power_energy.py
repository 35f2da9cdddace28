"""Joules: trapezoids over what a source says, gaps, idle, allowances; and what the metering itself costs."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_runtime.joules import Metered
from device_runtime.power import (
    Allowance,
    Energy,
    Meter,
    PowerError,
    RaplMonitor,
    Sample,
    SysfsMonitor,
    attributed,
)
from tests.emulated_board import BOARDS, wait_for, write_board


class Ramp:
    """A source whose watts are a function of the seconds since it was opened, and that can be made to fail."""

    source = "ina3221"

    def __init__(self, watts: Callable[[float], float]) -> None:
        self.watts, self.dead, self.opened = watts, False, time.monotonic()

    def open(self) -> None:
        if self.dead:
            raise PowerError(self.source, "dead")

    def read(self) -> Sample:
        if self.dead:
            raise PowerError(self.source, "dead")
        t = time.monotonic()
        return Sample(t, self.watts(t - self.opened), self.source)

    def close(self) -> None:
        pass


@pytest.fixture
def metered() -> Iterator[Callable[..., Meter]]:
    meters: list[Meter] = []

    def make(source: Ramp, **settings: float) -> Meter:
        meters.append(Meter(source, **settings))  # type: ignore[arg-type]
        meters[-1].start()
        return meters[-1]

    yield make
    for meter in meters:
        meter.stop()


def test_energy_of_a_ramp_is_its_area(metered: Callable[..., Meter]) -> None:
    source = Ramp(lambda s: 10 * s)
    meter = metered(source)
    time.sleep(1.0)
    energy = meter.stop()
    end = energy.seconds + 0.0
    assert energy.joules == pytest.approx(5 * end * end, rel=0.05)
    assert energy.source == "ina3221" and energy.missing == 0


def test_active_energy_is_what_lies_above_idle(metered: Callable[..., Meter]) -> None:
    source = Ramp(lambda s: 4.0)
    meter = metered(source)
    assert meter.measure_idle(0.4) == pytest.approx(4.0)
    source.watts = lambda s: 9.0
    time.sleep(0.25)  # the change is seen with the next sample
    mark = meter.mark()
    time.sleep(0.5)
    energy = meter.since(mark)
    assert energy.joules == pytest.approx(9.0 * energy.seconds, rel=0.02)
    assert energy.active == pytest.approx(5.0 * energy.seconds, rel=0.02)
    assert energy.active_watts == pytest.approx(5.0, rel=0.02)


def test_work_shorter_than_a_sample_still_costs(metered: Callable[..., Meter]) -> None:
    meter = metered(Ramp(lambda s: 100.0), hz=2)
    time.sleep(0.6)
    mark = meter.mark()
    time.sleep(0.02)
    assert meter.since(mark).joules == pytest.approx(2.0, rel=0.5)


def test_time_without_samples_is_missing_and_not_free(metered: Callable[..., Meter]) -> None:
    source = Ramp(lambda s: 50.0)
    meter = metered(source)
    time.sleep(0.3)
    allowance = Allowance(meter, 1000.0)
    source.dead = True
    time.sleep(4.0)
    energy = meter.since(allowance._mark)
    assert 0.5 < energy.missing < 1.5  # the last sample stood for 3 of the 4 seconds
    assert energy.joules + 50.0 * energy.missing == pytest.approx(200.0, rel=0.05)
    assert allowance.used() == pytest.approx(200.0, rel=0.05)
    assert meter.latest() is None and meter.errors > 10 and "dead" in meter.last_error


def test_a_source_that_comes_back_is_taken_up_again(
    metered: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_runtime.power.energy._RETRY", 0.2)
    source = Ramp(lambda s: 5.0)
    meter = metered(source)
    source.dead = True
    wait_for(lambda: meter.errors > 4, "failures")
    source.dead = False
    wait_for(lambda: meter.latest() is not None, "the next sample")
    assert meter.stop().joules > 0


def test_an_allowance_stops_before_the_step_that_would_exceed_it(metered: Callable[..., Meter]) -> None:
    meter = metered(Ramp(lambda s: 20.0))
    wait_for(lambda: meter.latest() is not None, "the first sample")
    allowance, steps = Allowance(meter, 10.0), 0
    while not allowance():
        time.sleep(0.05)  # a step of one joule
        steps += 1
    assert 6 <= steps <= 9
    assert allowance.used() <= 10.0


def test_what_an_earlier_life_used_counts_against_the_allowance_and_in_the_total(metered: Callable[..., Meter]) -> None:
    meter = metered(Ramp(lambda s: 20.0))
    wait_for(lambda: meter.latest() is not None, "the first sample")
    counted, steps = Metered(meter, "ina3221"), 0
    spent = counted.allowance(20.0, before=10.0)
    while not spent():
        time.sleep(0.05)  # a step of one joule
        steps += 1
    assert 6 <= steps <= 9
    assert counted.used() == pytest.approx(10.0 + steps, abs=2.0)
    assert counted.spent({}).total == pytest.approx(10.0 + steps, abs=2.0)


def test_rapl_energy_is_exact_whatever_the_sampling(tmp_path: Path) -> None:
    zone = tmp_path / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "max_energy_range_uj": "9000000", "energy_uj": "8000000"}.items():
        (zone / name).write_text(f"{text}\n")
    monitor = RaplMonitor(tmp_path)
    monitor.open()
    meter = Meter(monitor)
    meter.start()
    wait_for(lambda: meter.latest() is not None, "the first sample")
    mark = meter.mark()
    for value in (8_700_000, 100_000, 1_900_000):
        fresh = zone / "energy_uj.new"
        fresh.write_text(f"{value}\n")
        fresh.replace(zone / "energy_uj")
        time.sleep(0.25)
    wait_for(lambda: meter.latest() is not None and meter.latest().watts == 0, "the counter to rest")  # type: ignore[union-attr]
    assert meter.since(mark).joules == pytest.approx(2.900001, abs=0.01)
    meter.stop()


def test_joules_per_block_are_shares_of_the_power_above_idle() -> None:
    energy = Energy(joules=100.0, active=60.0, seconds=10.0, missing=0.0, source="ina3221")
    assert attributed(energy, {"hand": 2.0, "shared": 0.5}) == {"hand": 12.0, "shared": 3.0}


def test_ten_samples_a_second_cost_less_than_two_percent_of_a_core(tmp_path: Path) -> None:
    write_board(tmp_path, BOARDS["AGX Orin"])
    monitor = SysfsMonitor(tmp_path)
    monitor.open()
    meter = Meter(monitor)
    taken: list[float] = []
    read, spent = monitor.read, itertools.count()

    def counted() -> Sample:
        next(spent)
        sample = read()
        taken.append(time.thread_time())  # CPU seconds of the metering thread since it began
        return sample

    monitor.read = counted  # type: ignore[method-assign]
    meter.start()
    began = time.monotonic()
    time.sleep(3.0)
    seconds = time.monotonic() - began
    meter.stop()
    samples = next(spent)
    share = (taken[-1] - taken[0]) / seconds
    print(f"metering: {share:.2%} of a core at {samples / seconds:.1f} samples a second")
    assert samples / seconds == pytest.approx(10, rel=0.15)
    assert share < 0.02


def test_a_stopped_meter_leaves_no_thread_and_cannot_be_started_twice() -> None:
    before = threading.active_count()
    meter = Meter(Ramp(lambda s: 1.0))
    meter.start()
    with pytest.raises(RuntimeError, match="running already"):
        meter.start()
    total = meter.stop()
    assert threading.active_count() == before
    assert meter.stop().joules == total.joules
