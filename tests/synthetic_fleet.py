"""A made-up fleet for tests of what operators see: summaries and telemetry as a coordinator and devices say them."""

from __future__ import annotations

from typing import Any

from protocol.messages import CoordinatorState, Label, Reply, Report, Request, RoundSummary, Telemetry, decode
from protocol.topics import Topics
from protocol.transport import Connected, Event, Received, Transport, Will

MODALITIES = ("torso", "right_arm", "left_arm", "right_leg", "left_leg")
TIERS = {"hub": 5, "phone": 3, "band": 1}  # tier -> modalities that it owns


def names(count: int) -> list[str]:
    tiers = list(TIERS)
    return [f"{tiers[k % 3]}-{k // 3 + 1}" for k in range(count)]


class SyntheticFleet:
    """State of `count` devices; `advance` finishes a round, `summary` is what the coordinator would say."""

    def __init__(self, count: int = 6, *, epoch: int = 7) -> None:
        self.epoch = epoch
        self.round, self.elapsed, self.began, self.paused, self.phase = 1, 0.0, 0.0, False, "gathering"
        self.trail: list[dict[str, Any]] = []
        self.scored: list[dict[str, Any]] = []
        self.devices = {name: self._device(k, name) for k, name in enumerate(names(count))}

    def _device(self, k: int, name: str) -> dict[str, Any]:
        tier = name.split("-")[0]
        owned = [MODALITIES[(k + n) % 5] for n in range(TIERS[tier])] if tier != "hub" else list(MODALITIES)
        return {
            "state": "ready", "why": "", "tier": tier, "modalities": owned, "windows": 200, "runtime": "0.1.0",
            "power": "configured", "watts": 1.0 + TIERS[tier], "rate": 0.0, "since": 0.0, "round": 0, "steps": {},
            "predicted": 0.0, "seconds": 0.0, "joules": 0.0, "bytes": 0, "loss": 0.0,
        }  # fmt: skip

    def open(self) -> None:
        """Begin the round: everybody who is there trains."""
        self.phase, self.began = "training", self.elapsed
        for k, device in enumerate(self.devices.values()):
            if device["state"] not in ("offline", "quarantined"):
                steps = dict.fromkeys(device["modalities"], 10 + (k + self.round) % 15)
                device |= {"state": "training", "steps": {**steps, "shared": 24}, "predicted": 0.5 + 0.02 * (k % 7)}

    def finish(self) -> None:
        """End it: everybody has answered, the round is committed and scored."""
        self.elapsed += 1.0
        for k, device in enumerate(self.devices.values()):
            if device["state"] == "training":
                size = 20000 * len(device["modalities"])
                device |= {
                    "state": "ready",
                    "round": self.round,
                    "bytes": size,
                    "joules": 1.0,
                    "loss": 1.0 / self.round,
                }
                device |= {"seconds": device["predicted"] * (0.8 + 0.1 * (k % 5)), "steps": {}}
        there = sum(d["state"] != "offline" for d in self.devices.values())
        self.trail.append(
            {
                "round": self.round, "began": self.began, "ended": self.elapsed, "assigned": there, "updates": there,
                "partial": 0, "trainers": {}, "loss": 1.0 / self.round, "joules": 1.0 * there,
                "bytes_up": 60000 * there, "bytes_down": 240000,
                "divergence": {m: 1 / (1 + 0.05 * self.round * (n + 1)) for n, m in enumerate((*MODALITIES, "shared"))},
                "fedavg": {"seconds": 4.0, "joules": 2.6 * there, "bytes_up": 240000 * there, "bytes_down": 240000},
            }
        )  # fmt: skip
        good = 1.0 - 0.8 / self.round**0.5
        scores = {"in_subject": good, "held_out": 0.8 * good, "rare_only": 0.4 * good}
        self.scored.append({"round": self.round, "at": self.elapsed, **scores})
        self.round += 1
        self.phase = "gathering"

    def summary(self) -> RoundSummary:
        online = [d for d in self.devices.values() if d["state"] != "offline"]
        last = self.trail[-1] if self.trail else None
        scored = {k: v for k, v in self.scored[-1].items() if k not in ("round", "at")} if self.scored else {}
        fields = {
            "strategy": "relief", "rounds": 0, "paused": self.paused, "elapsed": self.elapsed, "began": self.began,
            "deadline": 10.0 if self.phase == "training" else 0.0, "versions": {}, "trainers": {},
            "cohorts": {m: sum(m in d["modalities"] for d in online) for m in MODALITIES},
            "divergence": last["divergence"] if last else {}, "loss": last["loss"] if last else None,
            "last_seconds": 1.0 if last else None, "scores": scored, "scored_round": len(self.scored),
            "joules": 0.0, "power": ["configured"], "trail": self.trail[-60:], "scored": self.scored[-60:],
            "devices": self.devices, "alarms": {}, "refused": {}, "bytes_up": 0, "bytes_down": 0,
            "can": ["pause", "resume", "quarantine", "release", "order"],
        }  # fmt: skip
        return RoundSummary(round=self.round, epoch=self.epoch, phase=self.phase, fields=fields)


class SyntheticCoordinator:
    """Says a SyntheticFleet's summaries over a transport and answers requests as a coordinator does."""

    def __init__(self, fleet: str, transport: Transport, count: int = 6) -> None:
        self.fleet, self.topics, self._transport = SyntheticFleet(count), Topics(fleet), transport
        self.asked: list[Request] = []
        self.labels: list[tuple[str, Label]] = []  # device and what it was told, which a coordinator only overhears
        transport.open(self._take, Will(self.topics.coordinator("state"), self._state(online=False), delay=0))

    def _state(self, *, online: bool) -> bytes:
        return CoordinatorState(online=online, boot="b", epoch=7).encode()

    def _take(self, event: Event) -> None:
        if isinstance(event, Connected):
            self._transport.subscribe(self.topics.coordinator("request"), self.topics.device("+", "label"))
            self._transport.publish(self.topics.coordinator("state"), self._state(online=True), retain=True)
            self.say()
        elif isinstance(event, Received) and event.topic.endswith("/label"):
            self.labels.append((event.topic.split("/")[-2], decode(Label, event.payload)))
        elif isinstance(event, Received):
            request = decode(Request, event.payload)
            self.asked.append(request)
            reason = self._obey(request)
            reply = Reply(id=request.id, ok=not reason, reason=reason)
            self._transport.publish(self.topics.reply(request.operator), reply.encode())
            self.say()

    def _obey(self, request: Request) -> str:
        """Do what is asked; why not, where that is so."""
        if request.kind == "order":
            for name in request.args["devices"]:
                report = Report(id=request.id, kind=request.args["order"], ok=True, values={"versions": 3})
                self._transport.publish(self.topics.device(name, "report"), report.encode())
        device = self.fleet.devices.get(str(request.args.get("device", "")))
        if request.kind in ("pause", "resume"):
            self.fleet.paused = request.kind == "pause"
        elif request.kind in ("quarantine", "release"):
            if device is None:
                return f"no device {request.args.get('device')!r} has reported"
            device["state"] = "quarantined" if request.kind == "quarantine" else "ready"
            device["why"] = str(request.args.get("reason", ""))
        return ""

    def say(self) -> None:
        """Publish the summary."""
        self._transport.publish(self.topics.coordinator("round"), self.fleet.summary().encode(), retain=True)

    def telemetry(self, device: str, now: float, **values: Any) -> None:
        """Publish a device's telemetry."""
        message = Telemetry(time=now, values=values)
        self._transport.publish(self.topics.device(device, "telemetry"), message.encode(), qos=0)

    def close(self) -> None:
        self._transport.publish(self.topics.coordinator("state"), self._state(online=False), retain=True)
        self._transport.close()
