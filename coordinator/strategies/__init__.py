"""The methods by name. Adding one takes a file beside these, or an entry point in the group `relief.strategies`."""

from __future__ import annotations

from importlib.metadata import entry_points

from coordinator.strategies.base import Plan, Settings, Strategy
from coordinator.strategies.fedavg import FedAvg, FedAvgMasked, FedAvgMaskedCached, FedAvgMaskedCut
from coordinator.strategies.oracle import Oracle
from coordinator.strategies.relief import CohortOnly, CohortSteps, Relief, ReliefSamples, ReliefWater
from coordinator.strategies.rivals import RIVALS

_BUILT_IN: tuple[type[Strategy], ...] = (
    Relief,
    ReliefWater,
    CohortSteps,
    CohortOnly,
    ReliefSamples,
    Oracle,
    FedAvg,
    FedAvgMasked,
    FedAvgMaskedCached,
    FedAvgMaskedCut,
    *RIVALS,
)
STRATEGIES: dict[str, type[Strategy]] = {s.name: s for s in _BUILT_IN}


def strategy(name: str) -> type[Strategy]:
    """The method called `name`, built in or installed. ValueError naming the known ones."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    others = {e.name: e for e in entry_points(group="relief.strategies")}
    if name in others:
        loaded: type[Strategy] = others[name].load()
        return loaded
    raise ValueError(f"strategy {name!r} is not known; choose one of {', '.join(sorted({*STRATEGIES, *others}))}")


__all__ = ["STRATEGIES", "Plan", "Settings", "Strategy", "strategy"]
