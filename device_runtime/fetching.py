"""A registered version on its way: its blocks are downloaded under names of their own, beside those of the rounds."""

from __future__ import annotations

from collections.abc import Iterable

from device_runtime.assignments import RELEASE
from device_runtime.downloads import Downloads
from device_runtime.events import Action, Adopt, Subscribe
from device_runtime.following import Following
from protocol.messages import Order
from protocol.topics import Topics


class Fetching:
    """What the last order to adopt a version asked for, until all of it is here. A newer order takes its place.

    names   name under which a block of that version is published -> the block
    """

    def __init__(self, fleet: Topics, downloads: Downloads, following: Following) -> None:
        self._fleet, self._downloads, self._following = fleet, downloads, following
        self._order: tuple[Order, int] | None = None
        self.names: dict[str, str] = {}

    def begin(self, order: Order, version: int, blocks: Iterable[str]) -> list[Action]:
        """Ask for a version's `blocks`."""
        self._forget()
        self._order = order, version
        self.names = {block + RELEASE.format(version): block for block in blocks}
        return [Subscribe(tuple(map(self._fleet.manifest, self.names)))]

    def done(self) -> list[Action]:
        """The version is taken up, once all its blocks are here."""
        if self._order is None or any(map(self._downloads.needs, self.names)):
            return []
        blocks = {block: self._downloads.held[name] for name, block in self.names.items()}
        order, version = self._order
        self._forget()
        return [Adopt(order, version, blocks)]

    def _forget(self) -> None:
        self._downloads.forget(self.names)
        self._following.forget(self.names)
        self._order, self.names = None, {}
