"""The device's hands: what the agent decides is carried out, over the transport, in the outbox, by the trainer.

Nothing is decided here. What cannot be sent now is sent again by the agent's own plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import singledispatch
from typing import TYPE_CHECKING

from device_runtime.agent import Agent
from device_runtime.config import DeviceConfig
from device_runtime.events import (
    Action,
    Adopt,
    Annotate,
    Ask,
    Drop,
    GiveUp,
    Keep,
    Note,
    Obey,
    Publish,
    StartTraining,
    StopTraining,
    Subscribe,
    Unsubscribe,
    Upload,
    UseModel,
)
from device_runtime.orders import answered, by_inference, switched
from device_runtime.outbox import Outbox
from device_runtime.sensing import Sensing
from device_runtime.uplink import pieces, question
from device_runtime.worker import Worker
from protocol.errors import ProtocolError
from protocol.messages import Order
from protocol.topics import Topics
from protocol.transport import Transport

if TYPE_CHECKING:
    from device_runtime.predictor import Predictor
    from device_runtime.update import Updater

log = logging.getLogger("relief.device")


class Hands:
    """`say` takes events for the agent and only enqueues; `restart` and `give_up` end the life, with a reason.

    owned          modalities that this device has, whether they deliver now or not
    max_payload    bytes that the broker takes, once it is connected
    bytes_up       of all payloads so far
    """

    def __init__(
        self,
        config: DeviceConfig,
        topics: Topics,
        transport: Transport,
        sensing: Sensing,
        owned: tuple[str, ...],
        outbox: Outbox,
        agent: Agent,
        worker: Worker | None,
        predictor: Predictor | None,
        *,
        say: Callable[[object], None],
        restart: Callable[[str], None],
        give_up: Callable[[str], None],
    ) -> None:
        self._config, self._topics, self._transport = config, topics, transport
        self._sensing, self._owned, self._outbox, self._agent = sensing, owned, outbox, agent
        self._worker, self._predictor = worker, predictor
        self._say, self._restart, self._give_up = say, restart, give_up
        self.max_payload = self.bytes_up = 0
        self._updater: Updater | None = None
        self._logged: set[str] = set()

    def do(self, action: Action) -> None:
        """Carry out one action. Raises Congested and ProtocolError where the broker does not take it."""
        Hands._do.dispatch(type(action))(self, action)

    @singledispatch  # singledispatchmethod would make a function anew at every call
    def _do(self, action: object) -> None:
        raise TypeError(f"not an action: {type(action).__name__}")

    @_do.register
    def _subscribe(self, action: Subscribe) -> None:
        self._transport.subscribe(*action.filters)

    @_do.register
    def _unsubscribe(self, action: Unsubscribe) -> None:
        self._transport.unsubscribe(*action.filters)

    @_do.register
    def _send(self, action: Publish) -> None:
        payload = action.message.encode()
        self.bytes_up += len(payload)
        self._transport.publish(action.topic, payload, qos=action.qos, retain=action.retain)

    @_do.register
    def _use_model(self, action: UseModel) -> None:
        log.info("model: %s, %s", action.spec.mode.value, ", ".join(action.spec.names))
        if self._worker:
            self._worker.use_model(action.spec, self._owned)

    @_do.register
    def _start(self, action: StartTraining) -> None:
        assert self._worker is not None  # an agent that cannot train declines
        log.info("round %d: training %s", action.assignment.round, action.assignment.steps)
        self._worker.train(action, self._sensing.labelled())

    @_do.register
    def _stop_training(self, action: StopTraining) -> None:
        if self._worker:
            self._worker.cancel(action.assignment)

    @_do.register
    def _keep(self, action: Keep) -> None:
        update = action.update
        log.info(
            "round %d: %.2f s, loss %.3f%s", update.round, update.seconds, update.loss, ", partial" * update.partial
        )
        for gone in self._outbox.put(update.id, update.assignment, update.encode()):
            log.warning("outbox full: update %s gave way", gone[:8])
            self._agent.forget(gone)
        self.say_problem()

    @_do.register
    def _ask(self, action: Ask) -> None:
        length = self._outbox.length(action.update)
        if length is None:
            self._agent.forget(action.update)
            return
        asked = question(action.update, length, self.max_payload)
        self._send(Publish(self._topics.device(self._config.id, "report"), asked))

    @_do.register
    def _upload(self, action: Upload) -> None:
        body = self._outbox.body(action.update)
        if body is None:
            self._agent.forget(action.update)
            return
        topic = self._topics.device(self._config.id, "update")
        for chunk in pieces(action, body, self.max_payload):
            payload = chunk.encode()
            self.bytes_up += len(payload)
            self._transport.publish(topic, payload)

    @_do.register
    def _drop(self, action: Drop) -> None:
        self._outbox.remove(action.update)
        if self._worker:
            self._worker.wire.settle(action.update, action.accepted)

    @_do.register
    def _obey(self, action: Obey) -> None:
        order = action.order
        if by_inference(order) and self._predictor:
            windows, say = self._sensing.labelled(), self._say
            self._predictor.judge(windows, lambda found, why: say(answered(order, found, why)))
        elif order.kind in ("profile", "evaluate") and not by_inference(order) and self._worker:
            self._worker.obey(order, dict(self._agent.downloads.held), self._sensing.labelled())
        elif order.kind == "update_runtime":
            self._update(order)
        else:
            self._say(switched(order, self._predictor))

    @_do.register
    def _adopt(self, action: Adopt) -> None:
        say, found = self._say, {"version": action.version}
        if self._predictor is None or self._agent.model is None:
            say(answered(action.order, {}, "this device does not predict"))
            return
        self._predictor.release(
            action.version, self._agent.model, action.blocks, lambda why: say(answered(action.order, found, why))
        )

    @_do.register
    def _annotate(self, action: Annotate) -> None:
        self._sensing.annotate(action.label)

    @_do.register
    def _note(self, action: Note) -> None:
        log.log(logging.WARNING if action.trouble else logging.INFO, "%s", action.text)

    @_do.register
    def _stop(self, action: GiveUp) -> None:
        log.error("%s", action.reason)
        self._give_up(action.reason)

    # -- besides ---------------------------------------------------------------------------------

    def telemetry(self, payload: bytes) -> None:
        """Send telemetry, or keep it until there is a connection."""
        if not self._agent.connected:
            self._outbox.remember(payload)
            return
        self.bytes_up += len(payload)
        try:
            self._transport.publish(self._topics.device(self._config.id, "telemetry"), payload, qos=0)
        except ProtocolError as error:
            self.once(str(error))

    def once(self, text: str) -> None:
        """Log something that would otherwise fill the log."""
        if text not in self._logged and len(self._logged) < 1000:
            self._logged.add(text)
            log.warning("%s", text)

    def say_problem(self) -> None:
        """Log what keeps updates from the disk, if anything does."""
        if self._outbox.problem:
            self.once(self._outbox.problem)

    def _update(self, order: Order) -> None:
        from device_runtime.update import Updater  # its HTTP client costs memory that few lives ever need

        self._updater = self._updater or Updater(self._config.folder, self._say, self._restart)
        self._updater.obey(order)
