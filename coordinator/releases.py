"""Registered versions on their way to devices: published beside the newest blocks, and ordered of whom it concerns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from coordinator.orders import passed_on
from coordinator.publisher import Publisher
from coordinator.versions import NoVersion, Versions, block_name
from protocol.errors import ProtocolError
from protocol.messages import Order, Reply, Request

log = logging.getLogger("relief.coordinator")

KINDS = ("order", "adopt", "rollback")  # requests that become orders for devices


class Releases:
    """What devices can adopt. `epoch` gives the coordinator's present one."""

    def __init__(self, versions: Versions, publisher: Publisher, epoch: Callable[[], int]) -> None:
        self.versions, self._publisher, self._epoch = versions, publisher, epoch

    def resume(self) -> None:
        """Publish again what devices could get before: they may have been away."""
        for version in list(self.versions.published):
            try:
                self.offer(version)
            except NoVersion as error:
                log.error("not offered any more: %s", error)

    def offer(self, version: object) -> None:
        """Publish a version, and take back what is two versions older. NoVersion, ProtocolError, OSError."""
        found = self.versions.get(version)
        number, epoch = found.version, self._epoch()
        for name, vector in found.blocks.items():
            center, width = found.meta["scales"].get(name, ([], []))
            own = found.versions.get(name, number)
            self._publisher.block(block_name(name, number), own, epoch, vector, (center, width))
        for old in self.versions.publish(number):
            for name in found.blocks:
                self._publisher.clear(block_name(name, old))

    def passed_on(self, request: Request, known: Collection[str]) -> tuple[dict[str, Order], Reply]:
        """Device -> its order, and what the operator is told; a version that devices shall adopt is published first."""
        if request.kind != "order":
            more = {key: request.args[key] for key in ("version",) if key in request.args}
            plain = {"devices": request.args.get("devices"), "order": request.kind, "args": more}
            request = request.model_copy(update={"kind": "order", "args": plain})
        orders, told = passed_on(request, known)
        first = next(iter(orders.values()), None)
        if first is not None and first.kind == "adopt" and "version" in first.args:
            try:
                self.offer(first.args["version"])
            except (NoVersion, ProtocolError, OSError) as error:
                return {}, Reply(id=request.id, ok=False, reason=f"adopt: {error}")
        return orders, told
