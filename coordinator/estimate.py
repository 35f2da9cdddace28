"""What the same round would have cost under FedAvg: an estimate to stand beside what was spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.registry import Registry
from coordinator.strategies.base import Settings
from coordinator.strategies.fedavg import FedAvg
from models.cost import block_costs
from models.spec import ModelSpec
from protocol.messages import Status


@dataclass(frozen=True)
class FedAvgRound:
    """One round of zero-filled FedAvg on the same devices, by the cost model; nothing of it was measured.

    seconds    of its slowest device (uploads included);  joules  above idle, over devices whose power is known
    bytes_up   payload of the updates;  bytes_down  the blocks, published once for all
    """

    seconds: float = 0.0
    joules: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


class FedAvgEstimate:
    """Estimates by device, kept for as long as a device's status stays the same."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self._method = FedAvg(spec, settings)
        self._size = sum(cost.bytes for cost in block_costs(spec).values())
        self._known: dict[str, tuple[Status, float, float]] = {}

    def round(self, registry: Registry, devices: Iterable[str]) -> FedAvgRound:
        """The estimate for a round of these devices; those that the registry does not know are left out."""
        costs = [self._device(registry, device) for device in devices if device in registry.devices]
        if not costs:
            return FedAvgRound()
        return FedAvgRound(
            seconds=max(seconds for seconds, _ in costs),
            joules=sum(joules for _, joules in costs),
            bytes_up=self._size * len(costs),
            bytes_down=self._size,
        )

    def _device(self, registry: Registry, device: str) -> tuple[float, float]:
        status = registry.devices[device].status
        known = self._known.get(device)
        if known is None or known[0] is not status:
            (plan,) = self._method.plan(1, [registry.member(device)]).values()
            known = self._known[device] = status, plan.seconds, plan.joules
        return known[1], known[2]
