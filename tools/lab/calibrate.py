"""A fleet file whose speeds are what real processes said of themselves, so that the simulator runs the same fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from coordinator.registry import flops_per_second
from models.spec import ModelSpec
from protocol.messages import Status
from tools.lab.fleet import Fleet, Tier


def calibrated(
    fleet: Fleet, spec: ModelSpec, births: Mapping[str, Status], rounds: Sequence[Mapping[str, Any]]
) -> Fleet:
    """The fleet with every tier at its devices' median measured speed.

    births   device -> what it last said of itself, the seconds per window of its blocks among it
    rounds   as the coordinator recorded them; what one lasts beyond its slowest device's own time is the latency

    ValueError for a tier without any measured device.
    """
    found = {}
    for tier in fleet.tier:
        own = [flops_per_second(spec, one) for one in births.values() if one.tier == tier.name and one.speed]
        if not own:
            raise ValueError(f"tier {tier.name}: no device has said how fast it is")
        found[tier.name] = median(own)
    top = max(found.values())
    beyond = [
        r["ended"] - r["began"] - max(d["seconds"] for d in r["devices"].values()) for r in rounds if r["devices"]
    ]
    latency = max(0.0, median(beyond)) if beyond else 0.0
    tiers = [t.model_copy(update={"speed": found[t.name] / top, "latency": latency}) for t in fleet.tier]
    return fleet.model_copy(update={"gflops": top / 1e9, "tier": tiers})


def as_toml(fleet: Fleet, about: str) -> str:
    """The fleet as a file, with `about` as its first line."""
    lines = [f"# {about}", f'dataset = "{fleet.dataset}"', f"gflops = {fleet.gflops:.5g}"]
    for tier in fleet.tier:
        lines += ["", "[[tier]]", *(f"{name} = {_value(value)}" for name, value in _given(tier).items())]
    return "\n".join(lines) + "\n"


def _given(tier: Tier) -> dict[str, Any]:
    return tier.model_dump(exclude_defaults=True)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
