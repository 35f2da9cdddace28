"""A device that is connected like any other and says what it should not, on the topics that it may write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.chunks import split
from protocol.messages import BlockWork, Tensor, Update, update_id
from tests.faults.device_party import DeviceParty


@dataclass
class LyingParty(DeviceParty):
    """Takes part like the others, but changes some of its updates, and sends rubbish when asked to."""

    last: Update | None = None

    def _keep(self, id: str, update: Update) -> None:
        if self.random.random() < 0.5:
            update = self.last = self.twisted(update)
        else:
            self.world.clock(self.random.uniform(0.1, 1.0), lambda: self._send_twin(update))
        self.outbox.put(id, update.assignment, update.encode())

    def _send_twin(self, update: Update) -> None:
        """The same work once more, as if another life of this device had done it."""
        boot = f"{self.boot}.twin"
        twin = update.model_copy(update={"boot": boot, "id": update_id(self.name, boot, update.assignment)})
        if self.link is not None and self.agent is not None:
            for chunk in split(twin.id, twin.encode(), 300):
                self.link.publish(self.topics.device(self.name, "update"), chunk.encode())

    def twisted(self, update: Update) -> Update:
        """The update with one thing wrong."""
        draw, block = self.random, self.random.choice(list(update.blocks))
        work = update.blocks[block]
        size = len(work.delta.array())
        poisoned = np.where(np.arange(size) == draw.randrange(size), draw.choice([np.nan, np.inf]), 0.0)
        other = draw.choice([d.name for d in self.world.devices])
        seen = [u for u in self.world.check.sent.values() if u.device != self.name] or [update]
        changes: list[dict[str, Any]] = [
            {"blocks": {**update.blocks, block: _work(work, delta=Tensor.of(poisoned.astype("<f4")))}},
            {"blocks": {**update.blocks, block: _work(work, delta=Tensor.of(np.zeros(size + 1, "<f4")))}},
            {"blocks": {**update.blocks, block: _work(work, version=work.version + draw.choice([1, 7]))}},
            {"blocks": {**update.blocks, block: _work(work, steps=work.steps + 1000)}},
            {"blocks": {**update.blocks, block: _work(work, steps=0)}},
            {"blocks": {**update.blocks, draw.choice(list(self.world.channels)): work}},
            {"blocks": {"nothing": work}},
            {"samples": 0},
            {"round": update.round + draw.choice([-1, 1])} if update.round else {"samples": 0},
            {"epoch": update.epoch + 1},
            {"assignment": "another"},
            {"device": other},
            {"id": draw.choice(seen).id},
        ]
        return update.model_copy(update=draw.choice(changes))

    def lie(self) -> None:
        """Send something that nobody asked for."""
        if self.agent is None or self.link is None:
            return
        topic = self.topics.device(self.name, self.random.choice(["update", "status", "report"]))
        kind = self.random.randrange(4)
        if kind == 0:
            payloads = [self.random.randbytes(self.random.randint(0, 200))]
        elif kind == 1 and self.last is not None:  # its last one under a new id
            again = self.last.model_copy(update={"id": f"again-{self.random.random()}"})
            topic = self.topics.device(self.name, "update")
            payloads = [chunk.encode() for chunk in split(again.id, again.encode(), 300)]
        elif kind == 2 and self.world.check.sent:  # somebody else's, word for word
            stolen = self.random.choice(list(self.world.check.sent.values()))
            topic = self.topics.device(self.name, "update")
            payloads = [chunk.encode() for chunk in split(stolen.id, stolen.encode(), 300)]
        else:
            payloads = [self.agent.status.encode()[: self.random.randint(1, 60)]]
        for payload in payloads:
            self.link.publish(topic, payload)


def _work(work: BlockWork, **changes: Any) -> BlockWork:
    return work.model_copy(update=changes)
