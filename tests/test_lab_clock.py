"""The simulated clock counts what was done, and agrees with the cost model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from models.cost import block_costs, round_flops
from models.local import Local
from models.spec import SHARED, InputSpec, Mode, ModelSpec
from tools.lab.clock import spent, work_flops
from tools.lab.engine import Work
from tools.lab.world import LabDevice

SPEC = ModelSpec((InputSpec("chest", 3, 60), InputSpec("ecg", 2, 50), InputSpec("wrist", 6, 60)), 5)
DEVICE = LabDevice("d", "t", ("chest", "ecg"), "1", np.arange(40), 1e6, 1e3, 2e3, 0.5, 3.0, 1.0)


def work(there: dict[str, int], steps: dict[str, int]) -> Work:
    return Work({}, steps, 0.0, there)


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 12),
    trained=st.lists(st.integers(0, 12), min_size=3, max_size=3),
    windows=st.integers(1, 200),
    batch=st.integers(1, 32),
    cached=st.booleans(),
    resident=st.booleans(),
    lora=st.booleans(),
)
def test_without_dropout_the_count_is_the_cost_models(
    total: int, trained: list[int], windows: int, batch: int, cached: bool, resident: bool, lora: bool
) -> None:
    spec = replace(SPEC, mode=Mode.LORA) if lora else SPEC
    steps = {m: min(s, total) for m, s in zip(spec.names, trained, strict=True) if s} | {SHARED: total}
    done = work(dict.fromkeys(spec.names, total), steps)
    mine = work_flops(spec, block_costs(spec), done, Local(batch=batch, cache=cached), windows, resident=resident)
    theirs = round_flops(spec, spec.names, steps, batch, windows, cached=cached, resident=resident)
    assert mine == pytest.approx(theirs)


def test_a_dropped_modality_costs_nothing_in_the_steps_it_was_dropped_from() -> None:
    costs, local = block_costs(SPEC), Local(batch=10)
    whole = work_flops(SPEC, costs, work({"chest": 4, "ecg": 4}, {"chest": 4, "ecg": 4, SHARED: 4}), local, 40)
    less = work_flops(SPEC, costs, work({"chest": 4, "ecg": 1}, {"chest": 4, "ecg": 1, SHARED: 4}), local, 40)
    ecg = costs["ecg"]
    assert whole - less == pytest.approx(3 * 10 * (ecg.encode + ecg.fuse + ecg.backward))


def test_seconds_are_latency_download_computing_and_upload_by_hand() -> None:
    costs, local = block_costs(SPEC), Local(batch=10)
    done = work({"chest": 2, "ecg": 2}, {"chest": 2, SHARED: 2})
    cost = spent(SPEC, costs, DEVICE, done, local, ["chest", SHARED])
    sent = costs["chest"].bytes + costs[SHARED].bytes
    computing = work_flops(SPEC, costs, done, local, 40) / 1e6
    assert cost.bytes_up == cost.bytes_down == sent
    assert cost.seconds == pytest.approx(0.5 + sent / 2e3 + computing + sent / 1e3)
    assert cost.joules == pytest.approx(3.0 * computing)


@pytest.mark.parametrize(("wire", "part"), [("<f4", 1.0), ("<f2", 0.5), ("|i1", 0.25), ("<f8", 2.0)])
def test_fewer_bits_on_the_wire_are_fewer_bytes_up_and_the_same_down(wire: str, part: float) -> None:
    costs = block_costs(SPEC)
    cost = spent(SPEC, costs, DEVICE, work({"chest": 1}, {"chest": 1}), Local(wire=wire), ["chest"])
    assert cost.bytes_up == costs["chest"].bytes * part
    assert cost.bytes_down == costs["chest"].bytes


def test_an_unlimited_link_takes_no_time() -> None:
    device = replace(DEVICE, rate=0.0, down=0.0, latency=0.0)
    cost = spent(SPEC, block_costs(SPEC), device, work({"chest": 1}, {"chest": 1}), Local(), ["chest"])
    assert cost.seconds == cost.compute
