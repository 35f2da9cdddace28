"""Who is there: devices by their births and deaths, and what strategies need to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

import numpy as np

from coordinator.quarantine import Held
from coordinator.work import Member, Speed
from models.cost import block_costs
from models.spec import ModelSpec
from protocol.messages import Scale, Status, strange

ASSUMED_FLOPS = 1e9  # per second, of a device that has measured nothing yet
SLOWEST = 1e6  # seconds per window, or per byte of the uplink: eleven days
MOST_WINDOWS = 2**31


@dataclass
class Device:
    """One device: its latest birth or death, and what it did last."""

    id: str
    status: Status
    since: float  # of this status, in the coordinator's time
    fault: str = ""  # why it cannot take part although it is there

    @property
    def ready(self) -> bool:
        return self.status.online and self.status.can_train and self.status.windows > 0 and not self.fault


@dataclass
class Registry:
    """All devices that were ever heard of. A death counts only for the boot that it names."""

    spec: ModelSpec
    devices: dict[str, Device] = field(default_factory=dict)
    quarantined: dict[str, Held] = field(default_factory=dict)  # by the rule and by operators

    @property
    def held(self) -> dict[str, str]:
        """device -> reason, of those that only an operator releases."""
        return {d: one.reason for d, one in self.quarantined.items() if one.until == inf}

    @property
    def next_out(self) -> float:
        """When the next quarantine ends; infinite if none does by itself."""
        return min((one.until for one in self.quarantined.values()), default=inf)

    def let_out(self, now: float) -> bool:
        """End the quarantines whose time is over; False if there was none."""
        over = [d for d, one in self.quarantined.items() if one.until <= now]
        for device in over:
            del self.quarantined[device]
        return bool(over)

    def arrive(self, device: str, status: Status, now: float) -> bool:
        """Take in a birth or death; False if it changes nothing (a late death of an earlier boot, a repeat)."""
        known = self.devices.get(device)
        if known and not status.online and status.boot != known.status.boot:
            return False
        if known and known.status == status:
            return False
        if known and not status.online:
            # A death says little; what the device owned stays known for the display and for its return.
            status = known.status.model_copy(update={"online": False, "reason": status.reason})
        entry = self.devices.setdefault(device, Device(device, status, now))
        entry.status, entry.since, entry.fault = status, now, self._fault(status)
        return True

    def _fault(self, status: Status) -> str:
        if reason := strange(status.protocol, "the device"):
            return reason
        for name, channels in status.modalities.items():
            if name in self.spec.names and self.spec.input(name).channels != channels:
                return f"modality {name} has {channels} channels, the model expects {self.spec.input(name).channels}"
        if not set(status.modalities) & set(self.spec.names):
            return f"owns no modality of the model ({', '.join(self.spec.names)})"
        return _impossible(status)

    def owned(self, device: str) -> tuple[str, ...]:
        """The device's modalities that the model has, in the model's order."""
        mine = self.devices[device].status.modalities if device in self.devices else {}
        return tuple(m for m in self.spec.names if m in mine)

    def ready(self) -> list[str]:
        """Devices that could train now, in order."""
        return sorted(d.id for d in self.devices.values() if d.ready and d.id not in self.quarantined)

    def sums(self, modality: str) -> dict[str, Scale]:
        """What the modality's owners say of their samples, even if they are away, not if they cannot take part."""
        told = {d.id: d.status.scale[modality] for d in self.devices.values() if modality in d.status.scale}
        channels = self.spec.input(modality).channels
        return {
            d: one
            for d, one in told.items()
            if len(one.total) == len(one.squares) == channels
            and not self.devices[d].fault
            and d not in self.quarantined
        }

    def member(self, device: str) -> Member:
        """The device as strategies see it."""
        status = self.devices[device].status
        return Member(
            id=device,
            owned=self.owned(device),
            windows=status.windows,
            speed=speeds(self.spec, status),
            rate=status.rate,
            watts=status.watts,
            tier=status.tier,
            measured=bool(status.speed),
        )

    def cohorts(self) -> dict[str, list[str]]:
        """modality -> its owners that are there."""
        online = [d for d in sorted(self.devices) if self.devices[d].status.online]
        return {m: [d for d in online if m in self.devices[d].status.modalities] for m in self.spec.names}


def _impossible(status: Status) -> str:
    """What of a device's own figures no device can have: plans made from them would have no finite length."""
    each = [seconds for speed in status.speed.values() for seconds in (speed.forward, speed.backward)]
    if each and not 0 <= min(each) <= max(each) <= SLOWEST:
        return f"says that a window takes it {max(each, key=abs):.3g} s; 0 to {SLOWEST:g} are possible"
    if status.rate < 0 or 0 < status.rate < 1 / SLOWEST:
        return f"says that its uplink carries {status.rate:.3g} bytes per second"
    if status.windows > MOST_WINDOWS:
        return f"says that it has {status.windows} windows; at most {MOST_WINDOWS} are possible"
    return ""


def speeds(spec: ModelSpec, status: Status) -> dict[str, Speed]:
    """Seconds per window of every block, from what the device measured; the rest from its own FLOPs per second.

    A measured forward time is split between encoder and fusion by their FLOPs.
    """
    costs = block_costs(spec)
    rate = flops_per_second(spec, status) or ASSUMED_FLOPS
    result = {}
    for block, cost in costs.items():
        own = status.speed.get(block)
        forward = own.forward if own else cost.forward / rate
        backward = own.backward if own else cost.backward / rate
        encode = forward * cost.encode / cost.forward if cost.forward else 0.0
        result[block] = Speed(encode, forward - encode, backward)
    return result


def flops_per_second(spec: ModelSpec, status: Status) -> float:
    """Arithmetic of a device over all blocks that it has measured; 0 if it has measured none."""
    costs = block_costs(spec)
    flops = seconds = 0.0
    for block, measured in status.speed.items():
        if block in costs:
            flops += costs[block].forward + costs[block].backward
            seconds += measured.forward + measured.backward
    return flops / seconds if seconds > 0 else 0.0


def normalisation(scales: Mapping[str, Scale]) -> tuple[list[float], list[float]] | None:
    """(center, width) per channel from the sums of a cohort's training windows; None if nobody sent any.

    The devices send counts and sums, never samples. Channels that hardly vary get width 1.
    """
    told = [scales[device] for device in sorted(scales) if scales[device].count]
    if not told:
        return None
    count = sum(one.count for one in told)
    total = np.sum([one.total for one in told], axis=0)
    squares = np.sum([one.squares for one in told], axis=0)
    center = total / count
    width = np.sqrt(np.maximum(squares / count - center**2, 0.0))
    return center.tolist(), np.where(width > 1e-6 * np.maximum(np.abs(center), 1.0), width, 1.0).tolist()
