"""The shell around the agent: transport, sensors, trainer, outbox and clock.

One queue and one loop. The transport's thread, the sensors' and the trainer's put events into the queue; the loop gives
them to the agent, whose actions are carried out by `hands`. Nothing else decides anything here, and nothing spins.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import time
import uuid
from importlib.metadata import version
from typing import Any

from device_runtime import memory, telemetry
from device_runtime.agent import Agent
from device_runtime.condition import Condition
from device_runtime.config import Settings
from device_runtime.equipment import energy, predictor
from device_runtime.events import (
    ChunkHeard,
    Event,
    Health,
    ManifestHeard,
    Predicted,
    Released,
    SensorsChanged,
    Tick,
    UseModel,
)
from device_runtime.hands import Hands
from device_runtime.listen import heard
from device_runtime.local import Asked, LocalSocket
from device_runtime.notify import Notify
from device_runtime.outbox import Outbox
from device_runtime.power import Limits
from device_runtime.progress import Progress
from device_runtime.sensing import Sensing, recognised, scale
from device_runtime.shelf import Shelf
from device_runtime.slots import RESTART, confirm
from device_runtime.worker import Worker, torch_is_here
from protocol.errors import Congested, ProtocolError
from protocol.messages import PROTOCOL, Status, Telemetry
from protocol.topics import Topics
from protocol.transport import Connected, Lost, Received, Stopped, Transport, Will
from protocol.waiting import take

log = logging.getLogger("relief.device")

RUNTIME = version("relief-edge")
STIR_PAUSE = 0.5  # seconds between two looks at the sensors' windows
HEALTH = 10.0  # seconds between two looks at temperature and battery
END = 1.0  # seconds that the trainer may take to reach a step border when everything ends


class _Stirred:
    """The sensors have something new."""


class _Stop:
    def __init__(self, reason: str) -> None:
        self.reason = reason


class Runtime:
    """One life of a device over an unopened transport. `run` returns 0 after `stop`, 1 where the broker refuses us.

    trainer    what trains in this life, made only where the device can and may
    """

    def __init__(
        self, settings: Settings, transport: Transport, sensing: Sensing, trainer: type[Worker] = Worker
    ) -> None:
        self.settings, self.config = settings, settings.device
        self.boot = uuid.uuid4().hex[:16]
        self.topics = Topics(settings.fleet)
        self.outbox = Outbox(self.config.folder / "outbox", self.config.outbox_bytes)
        self.bytes_down = 0
        self.trouble = ""  # why the connection was last lost
        self.unrecognised = 0  # windows at hand whose label is none of the model's classes
        self.began = time.monotonic()
        self._transport, self._sensing = transport, sensing
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.joules, self.meter = energy(self.config)
        self.condition = Condition(Limits(self.config.max_celsius, self.config.min_battery))
        trains = self.config.train and torch_is_here()
        share = min(1.0, self.config.quota or 1.0)  # training runs on one thread
        progress = Progress(self.config.folder)
        self.worker = None
        if trains:
            say, wish = self._queue.put, self.config.accelerator
            self.worker = trainer(self.config.id, self.boot, say, self.joules, progress, share, wish)
        birth = Status(
            online=True,
            protocol=PROTOCOL,
            boot=self.boot,
            runtime=RUNTIME,
            tier=self.config.tier,
            modalities=sensing.modalities,
            can_train=trains,
            watts=self.config.watts,
            rate=self.config.rate,
            idle_watts=self.config.idle_watts,
            power_source=self.joules.source,
        )
        kept = [(e.update, e.assignment) for e in self.outbox.entries]
        predicts = self.owned if self.config.inference else ()
        self.agent = Agent(self.topics, self.config.id, birth, jitter=random.random, predicts=predicts, kept=kept)
        self.predictor = None
        if self.config.inference:
            say = self._queue.put
            self.predictor = predictor(
                self.config.inference, self.owned, sensing, lambda p: say(Predicted(p)),
                shelf=Shelf(self.config.folder), changed=lambda version: say(Released(version)),
            )  # fmt: skip
        self.hands = Hands(
            self.config, self.topics, transport, sensing, self.owned, self.outbox, self.agent, self.worker,
            self.predictor, say=self._queue.put, restart=self._restart, give_up=self._give_up,
        )  # fmt: skip
        self._stirred, self._look_at = False, 0.0
        self._telemetry_at, self._health_at = math.inf, 0.0
        self._notify, self._alive_at = Notify(), 0.0
        self._local = LocalSocket(self.config.folder, self._queue.put)
        self._ended: _Stop | None = None
        self._code = 0
        self._reports = 0  # of telemetry

    @property
    def owned(self) -> tuple[str, ...]:
        """The modalities that this device has by its configuration, whether they deliver now or not."""
        live = self.config.live
        return tuple(m for s in live.sensors for m in s.modalities) if live else tuple(self._sensing.modalities)

    @property
    def sensors(self) -> dict[str, Any]:
        """How the sensors do, for telemetry."""
        return self._sensing.told()

    def stop(self, reason: str = "stopped") -> None:
        """End soon; from any thread, or a signal handler."""
        self._queue.put(_Stop(reason))

    def _restart(self, reason: str) -> None:
        self._code = RESTART
        self.stop(reason)

    def _give_up(self, reason: str) -> None:
        self._code, self._ended = 1, _Stop(reason)

    def run(self) -> int:
        """Live until told to stop, or to start anew (RESTART). AlreadyRunning where another process is this device."""
        if self.outbox.torn:
            log.warning("outbox: %d damaged files were removed", self.outbox.torn)
        self.hands.say_problem()
        if silent := self._local.open():
            log.warning("local socket: %s", silent)
        death = Status(online=False, boot=self.boot, reason="connection lost")
        will = Will(self.topics.device(self.config.id, "status"), death.encode(), self.config.will_delay)
        self._sensing.open(self._stir)
        if self.predictor:
            self.predictor.open()
        self._transport.open(self._queue.put, will)
        self._notify.ready(f"device {self.config.id}")
        if self.config.telemetry:
            self._telemetry_at = time.monotonic() + self.config.telemetry
        try:
            while self._ended is None:
                self._once()
        finally:
            self._close()
        return self._code

    # -- the loop --------------------------------------------------------------------------------

    def _once(self) -> None:
        now = time.monotonic()
        due = min(self.agent.wakes(), self._telemetry_at, self._health_at, self._look_at if self._stirred else math.inf)
        try:
            item = take(self._queue, None if due == math.inf else due - now)
        except queue.Empty:
            item = Tick()
        if isinstance(item, _Stop):
            self._ended = item
        elif isinstance(item, _Stirred):
            self._stirred = True
        elif isinstance(item, Asked):
            item.answer(telemetry.values(self) | telemetry.identity(self))
        elif isinstance(item, Received):
            self._received(item)
        else:
            if isinstance(item, Connected):
                self.hands.max_payload = item.max_payload
            elif isinstance(item, (Lost, Stopped)):
                self.trouble = item.reason
            self._tell(item)  # type: ignore[arg-type]  # the queue holds nothing but events besides
            if isinstance(item, Connected):
                confirm()
                for payload in self.outbox.recall():
                    self.hands.telemetry(payload)
        now = time.monotonic()
        if self._stirred and now >= self._look_at:
            self._look(now)
        if now >= self._alive_at:
            self._alive_at = now + self._notify.every
            self._notify.alive("connected" if self.agent.connected else "not connected")
        if now >= self._health_at:
            self._health_at = now + HEALTH
            self._tell(Health(self.condition.look()))
            self.outbox.secure()
            self.hands.say_problem()
        if now >= self._telemetry_at:
            self._telemetry_at = now + self.config.telemetry
            self._report()

    def _tell(self, event: Event) -> None:
        for action in self.agent.handle(event, time.monotonic()):
            try:
                self.hands.do(action)
            except Congested as error:
                self.hands.once(f"{error}")  # what was not taken is sent again by the agent's own plan
            except ProtocolError as error:
                self._refuse(str(error))
            if isinstance(action, UseModel):
                self._stirred = True  # which windows count depends on its classes

    def _received(self, message: Received) -> None:
        self.bytes_down += len(message.payload)
        try:
            event = heard(self.topics, self.config.id, message)
        except ProtocolError as error:
            self._refuse(str(error))
            return
        if event is None:
            return
        self._tell(event)
        if self.predictor and isinstance(event, (ManifestHeard, ChunkHeard)):
            self.predictor.offer(self.agent.model, self.agent.downloads.held)

    def _refuse(self, why: str) -> None:
        self.agent.counts["refused messages"] += 1
        self.hands.once(f"refused: {why}")

    def _stir(self) -> None:
        self._queue.put(_Stirred())

    def _look(self, now: float) -> None:
        """Tell the agent what the sensors have, at most twice a second however fast windows come."""
        self._stirred, self._look_at = False, now + STIR_PAUSE
        windows = held = self._sensing.labelled()
        if model := self.agent.model:
            windows = recognised(held, model.classes)
            self.unrecognised = len(held) - len(windows)
            if self.unrecognised:
                self.hands.once(f"windows with a label beyond the model's {model.classes} classes are left out")
        self._tell(SensorsChanged(self._sensing.modalities, len(windows), scale(windows)))

    def _report(self) -> None:
        memory.trim()
        self._reports += 1
        if self._reports & (self._reports - 1) == 0:  # 1, 2, 4, 8, ...: on a slow machine the start takes a while
            memory.forget_the_start()
        self.hands.telemetry(Telemetry(time=time.time(), values=telemetry.values(self)).encode())

    # -- the end ---------------------------------------------------------------------------------

    def _close(self) -> None:
        reason = self._ended.reason if self._ended else "an error in the runtime"
        self._notify.stopping()
        self._local.close()
        self._sensing.close()
        if self.predictor:
            self.predictor.close()
        if self.worker and not self.worker.close(END):
            log.warning("the trainer did not reach a step border within %g s", END)
        if self.meter:
            self.meter.stop()
        if self.worker and self.worker.busy.wall:
            busy = self.worker.busy
            wanted = f", {self.config.quota:.1%} was the quota" if self.config.quota else ""
            log.info("CPU: %.1f%% of a core achieved over %.1f s of training%s", 100 * busy.share, busy.wall, wanted)
        death = Status(online=False, boot=self.boot, reason=reason)
        self._transport.publish(self.topics.device(self.config.id, "status"), death.encode(), retain=True)
        self._transport.close()
        self.outbox.secure()
