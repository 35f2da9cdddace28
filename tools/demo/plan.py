"""The demo's fleet: eight devices in three tiers on whatever recordings are at hand, as one configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.config import BrokerConfig
from sensors.locate import Found

# Of a CPU core each; together at most 1.5, so that broker and coordinator have half a core of two.
QUOTAS = {"hub": 0.35, "phone": 0.16, "band": 0.08}
WATTS = {"hub": 10.0, "phone": 3.0, "band": 1.0}  # assumed, and named so: no power monitor is used here
RARE = {"dsads": "torso", "dsads15": "torso_acc", "mhealth": "ecg", "pamap2": "heart_rate", "synthetic": "ecg"}
TRAIN = 2 / 3  # of every activity's time; the last sixth is the test


@dataclass(frozen=True)
class DemoDevice:
    """One device: what it owns, whose recording it replays, and which part of every activity's time."""

    id: str
    tier: str
    modalities: tuple[str, ...]
    subject: str
    part: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """Everything the demo runs on; `note` says where the recordings are."""

    dataset: str
    note: str
    devices: tuple[DemoDevice, ...]
    held_out: tuple[str, ...]
    rare: str


def plan(found: Found, asked: str) -> Plan:
    """Eight devices: two hubs own everything, two phones all but the rare modality, four bands one or two sensors.

    Subjects in turn wear them; devices of one subject share its training time in contiguous parts. The last quarter of
    the subjects (at least one) is held out.
    """
    dataset = found.dataset
    names = tuple(m.name for m in dataset.modalities)
    rare = RARE.get(asked, names[0]) if RARE.get(asked) in names else names[0]
    common = [m for m in names if m != rare] or list(names)
    subjects = dataset.subjects()
    held_out = subjects[-max(1, len(subjects) // 4) :] if len(subjects) > 1 else subjects
    wearers = [s for s in subjects if s not in held_out] or list(subjects)
    bands: list[tuple[str, ...]] = [(common[k % len(common)],) for k in range(3)]
    bands.append(tuple(dict.fromkeys((common[-1], common[-2 % len(common)]))))
    phones = [tuple(m for m in common if m != common[k % len(common)]) or tuple(common) for k in range(2)]
    owned = [("hub", names)] * 2 + [("phone", p[:3]) for p in phones] + [("band", b) for b in bands]
    crews: dict[str, list[int]] = {}
    for k in range(len(owned)):
        crews.setdefault(wearers[k % len(wearers)], []).append(k)
    devices = []
    for subject, crew in crews.items():
        for place, k in enumerate(crew):
            tier, modalities = owned[k]
            part = (TRAIN * place / len(crew), TRAIN * (place + 1) / len(crew))
            devices.append(DemoDevice("", tier, tuple(m for m in names if m in modalities), subject, part))
    devices.sort(key=lambda d: list(QUOTAS).index(d.tier))
    counts = dict.fromkeys(QUOTAS, 0)
    named = []
    for device in devices:
        counts[device.tier] += 1
        named.append(replace(device, id=f"{device.tier}-{counts[device.tier]}"))
    return Plan(asked, found.note, tuple(named), tuple(held_out), rare)


def configuration(demo: Plan, folder: Path, broker: BrokerConfig, strategy: str, rounds: int, *, seed: int = 0) -> str:
    """The whole fleet as one TOML file; `folder` is where this run's record goes."""
    meet = [f"port = {broker.port}"] if broker.transport == "mqtt" else ['transport = "memory"']
    if broker.identities:
        meet.append(f'identities = "{broker.identities}"')
    lines = [
        'fleet = "demo"',
        "",
        "[broker]",
        *meet,
        "",
        "[model]",
        f'dataset = "{demo.dataset}"',
        "",
        "[coordinator]",
        f'folder = "{folder}"',
        f'strategy = "{strategy}"',
        f"rounds = {rounds}",
        f"expect = {len(demo.devices)}",
        "gather = 60",
        "",
        "[coordinator.training]",
        f"seed = {seed}",
        "clip = 2.0",  # without it zero-filled FedAvg can collapse at this learning rate
    ]
    real = broker.transport == "mqtt"
    lines += fleet_sections(
        demo.dataset,
        demo.held_out,
        demo.devices,
        folder.parent / "state",
        quotas=QUOTAS if real else {},
        watts=WATTS,
        overlap=0.5,
        telemetry=5.0,
    )
    return "\n".join(lines) + "\n"


def fleet_sections(
    dataset: str,
    held_out: Sequence[str],
    devices: Sequence[DemoDevice],
    state: Path,
    *,
    quotas: Mapping[str, float],
    watts: Mapping[str, float],
    overlap: float,
    telemetry: float = 0.0,
) -> list[str]:
    """Lines of a configuration file: who judges, and every device process. `quotas` and `watts` go by tier."""
    lines = ["", "[evaluation]", f'dataset = "{dataset}"', f"held_out = {_list(held_out)}"]
    for d in devices:
        lines += [
            "",
            "[[evaluation.owner]]",
            f"modalities = {_list(d.modalities)}",
            f"subjects = {_list((d.subject,))}",
        ]
    for d in devices:
        lines += [
            "",
            "[[device]]",
            f'id = "{d.id}"',
            f'tier = "{d.tier}"',
            f"modalities = {_list(d.modalities)}",
            f'state = "{state}"',
            f"quota = {quotas.get(d.tier, 0)}",
            f"watts = {watts[d.tier]}",
            f"telemetry = {telemetry:g}",
            "[device.source]",
            f'dataset = "{dataset}"',
            f'subject = "{d.subject}"',
            f"part = [{d.part[0]:.6f}, {d.part[1]:.6f}]",
            "speed = inf",
            f"overlap = {overlap}",
        ]
    return lines


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
