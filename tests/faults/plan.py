"""What goes wrong, and when: drawn from the seed, at least twenty faults a run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from protocol.faulty import Faults

if TYPE_CHECKING:
    from tests.faults.world import World

LEAST = 20  # faults in every run, besides those of single messages
CALM = Faults(delay=(0.001, 0.01))


def weather(draw: random.Random) -> Faults:
    """What this run's network does to single messages."""
    return Faults(
        drop=draw.choice([0.0, 0.01, 0.05]),
        duplicate=draw.choice([0.0, 0.03, 0.2]),
        reorder=draw.choice([0.0, 0.05, 0.3]),
        cut=draw.choice([0.0, 0.005]),
        delay=draw.choice([(0.0, 0.002), (0.001, 0.05), (0.0, 1.5)]),
        cut_seconds=(0.1, 8.0),
    )


class Plan:
    """Plans one fault after the other until there were enough."""

    def __init__(self, world: World, draw: random.Random) -> None:
        self.world, self.random = world, draw
        self.happened = 0
        self.wanted = draw.randint(LEAST, LEAST + 10)
        self._kinds = (
            self.device_dies, self.device_dies, self.device_dies_at_a_deed, self.device_dies_at_a_deed,
            self.coordinator_dies, self.coordinator_dies_at_a_deed, self.coordinator_dies_at_a_deed,
            self.coordinator_dies_at_a_deed, self.link_is_cut, self.link_is_cut, self.coordinator_is_cut,
            self.network_parts, self.broker_forgets, self.disk_fills, self.clock_jumps, self.device_slows,
            self.sensors_change, self.device_lies, self.everybody_dies,
        )  # fmt: skip
        self._next()

    @property
    def over(self) -> bool:
        return self.happened >= self.wanted

    def _next(self) -> None:
        self.world.clock(self.random.expovariate(1 / 1.5), self._strike)

    def _strike(self) -> None:
        fault = self.random.choice(self._kinds)
        self.world.note(f"fault {self.happened + 1}: {fault.__name__}")
        fault()
        self.happened += 1
        if self.over:
            self.world.clock(15.0, self.world.calm)
        else:
            self._next()

    # -- the kinds -------------------------------------------------------------------------------------

    def device_dies(self) -> None:
        self._device().die()

    def device_dies_at_a_deed(self) -> None:
        self._device().fuse.light(self.random.randint(0, 25))

    def coordinator_dies(self) -> None:
        self.world.coordinator.die()

    def coordinator_dies_at_a_deed(self) -> None:
        self.world.coordinator.fuse.light(self.random.randint(0, 60))

    def everybody_dies(self) -> None:
        """A fleet that shrinks to zero."""
        for device in self.world.devices:
            device.die()

    def link_is_cut(self) -> None:
        link = self._device().link
        if link is not None:
            link.cut(self.random.uniform(0.1, 20.0))

    def coordinator_is_cut(self) -> None:
        links = self.world.coordinator.links
        for link in links if self.random.random() < 0.5 else [self.random.choice(links)] if links else []:
            link.cut(self.random.uniform(0.1, 10.0))

    def network_parts(self) -> None:
        """Some devices are on the other side of a cable for a while."""
        seconds = self.random.uniform(0.5, 15.0)
        for device in self.random.sample(self.world.devices, len(self.world.devices) // 2):
            if device.link is not None:
                device.link.cut(seconds)

    def broker_forgets(self) -> None:
        """kill -9 of a broker: connections and all retained messages are gone."""
        self.world.broker._retained.clear()
        for identity in list(self.world.broker._sessions):
            self.world.broker.cut(identity, self.random.uniform(0.05, 5.0))

    def disk_fills(self) -> None:
        disk = self.world.coordinator.disk
        disk.full = True

        def free() -> None:
            disk.full = False

        self.world.clock(self.random.uniform(0.5, 12.0), free)

    def clock_jumps(self) -> None:
        """The machine slept: its clock is suddenly ahead."""
        life = self.world.coordinator.life
        if life is not None:
            life.lead += self.random.choice([0.5, 5.0, 60.0, 3600.0])
            self.world.coordinator.poke(0.0)

    def device_slows(self) -> None:
        self._device().slow = self.random.choice([1.0, 4.0, 30.0])

    def sensors_change(self) -> None:
        """A modality is unplugged or comes back, within or between rounds."""
        device = self._device()
        owned = self.random.sample(list(self.world.channels), self.random.randint(1, len(self.world.channels)))
        device.change_sensors({m: self.world.channels[m] for m in sorted(owned)})

    def device_lies(self) -> None:
        self.world.liar.lie()

    def _device(self):  # type: ignore[no-untyped-def]
        return self.random.choice(self.world.devices)
