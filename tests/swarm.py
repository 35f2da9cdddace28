"""Thousands of devices in one process, as bare MQTT clients: born, assigned, and all publishing at the same moment.

`python -m tests.swarm PORT FLEET COUNT CHANNELS SPEC` prints one JSON line with what became of every update. They keep
their update until it is answered, as devices do, but never send it twice: what is lost would stay lost.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time

import numpy as np

from models.partition import partition
from models.spec import ModelSpec
from protocol.messages import Answer, Assignment, BlockWork, Chunk, Status, Tensor, Update, decode, update_id
from protocol.topics import Topics

CONNECT, PUBLISH, PUBACK, SUBSCRIBE = 0x10, 0x32, 0x40, 0x82
AT_ONCE = 100  # handshakes at a time; the updates come all together


class Device(asyncio.Protocol):
    """One device's connection: a state machine over the packets it gets."""

    def __init__(self, name: str, swarm: Swarm) -> None:
        self.name, self._swarm, self._rest = name, swarm, bytearray()
        self.assignment: Assignment | None = None
        self.pubacks: list[int] = []
        self.answers: list[Answer] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        body = b"\x00\x04MQTT\x05\x02\x01\x2c\x00" + _text(self.name)
        transport.write(_packet(CONNECT, body))

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (packet := _take(self._rest)) is not None:
            self._packet(*packet)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = not self._swarm.done.is_set()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """QoS 1, packet id 1: one at a time."""
        self._transport.write(_packet(PUBLISH | retain, _text(topic) + b"\x00\x01\x00" + payload))

    def _packet(self, first: int, body: bytes) -> None:
        kind = first & 0xF0
        if kind == 0x20:
            assert body[1] == 0, f"the broker refused {self.name} with {body[1]}"
            topics = [self._swarm.topics.device(self.name, leaf) for leaf in ("assignment", "answer")]
            wanted = b"".join(_text(topic) + b"\x01" for topic in topics)
            self._transport.write(_packet(SUBSCRIBE, b"\x00\x02\x00" + wanted))
        elif kind == 0x90:
            self.publish(self._swarm.topics.device(self.name, "status"), self._swarm.birth(self), retain=True)
        elif kind == 0x40:
            self.pubacks.append(body[2] if len(body) > 2 else 0)
            self._swarm.look()
        elif kind == 0x30:
            self._message(first, body)

    def _message(self, first: int, body: bytes) -> None:
        at = 2 + struct.unpack_from("!H", body)[0]
        topic = body[2:at].decode()
        if first & 0x06:
            self._transport.write(_packet(PUBACK, body[at : at + 2]))
            at += 2
        length, at = _length(body, at)
        payload = body[at + length :]
        if topic.endswith("/assignment"):
            self.assignment = decode(Assignment, payload)
        else:
            self.answers.append(decode(Answer, payload))
        self._swarm.look()

    def close(self) -> None:
        self._transport.abort()


class Swarm:
    """All devices, and the moment they wait for."""

    def __init__(self, fleet: str, count: int, spec: ModelSpec) -> None:
        self.topics, self.count, self._spec = Topics(fleet), count, spec
        self.devices: list[Device] = []
        self.done, self._look = asyncio.Event(), asyncio.Event()

    def look(self) -> None:
        self._look.set()

    async def until(self, ready: str, patience: float) -> bool:
        """Wait until every device is `ready`."""
        end = time.monotonic() + patience
        while not all(getattr(self, ready)(device) for device in self.devices):
            self._look.clear()
            try:
                await asyncio.wait_for(self._look.wait(), max(0.01, end - time.monotonic()))
                await asyncio.sleep(0.02)
            except asyncio.TimeoutError:
                return False
        return True

    def assigned(self, device: Device) -> bool:
        return device.assignment is not None

    def answered(self, device: Device) -> bool:
        return bool(device.answers)

    def birth(self, device: Device) -> bytes:
        channels = {i.name: i.channels for i in self._spec.inputs}
        speed = {i.name: {"forward": 1e-5, "backward": 1e-5} for i in self._spec.inputs}
        status = {"online": True, "boot": device.name, "modalities": channels, "windows": 40, "can_train": True}
        return Status.model_validate({**status, "speed": speed}).encode()

    def update(self, device: Device) -> bytes:
        """The device's whole update, in one chunk."""
        assert device.assignment is not None
        cut, work = partition(self._spec), device.assignment
        blocks = {}
        for block, steps in work.steps.items():
            vector = np.full(cut.size(block), 1e-3, np.float32)
            blocks[block] = BlockWork(version=work.versions[block], steps=max(1, steps), delta=Tensor.of(vector))
        update = Update(
            id=update_id(device.name, device.name, work.id), device=device.name, boot=device.name, round=work.round,
            epoch=work.epoch, assignment=work.id, blocks=blocks, samples=40, loss=1.0,
        )  # fmt: skip
        from protocol.chunks import split

        whole = update.encode()
        (chunk,) = split(update.id, whole)
        assert isinstance(chunk, Chunk)
        return chunk.encode()


async def run(port: int, fleet: str, count: int, spec: ModelSpec) -> dict[str, float]:
    """The whole life of the swarm; what became of it."""
    swarm, loop = Swarm(fleet, count, spec), asyncio.get_running_loop()
    for first in range(0, count, AT_ONCE):
        names = [f"s{n:05d}" for n in range(first, min(first + AT_ONCE, count))]
        made = [loop.create_connection(lambda n=name: Device(n, swarm), "127.0.0.1", port) for name in names]
        swarm.devices += [device for _, device in await asyncio.gather(*made)]
    assert await swarm.until("assigned", 90), "not every device got an assignment"
    payloads = [swarm.update(device) for device in swarm.devices]
    began = time.monotonic()
    for device, payload in zip(swarm.devices, payloads, strict=True):
        device.pubacks.clear()
        device.publish(swarm.topics.device(device.name, "update"), payload)
    await swarm.until("answered", 120)
    took = time.monotonic() - began
    swarm.done.set()
    for device in swarm.devices:
        device.close()
    return {
        "devices": count,
        "bytes": sum(map(len, payloads)) / count,
        "taken by the broker": sum(device.pubacks == [0] for device in swarm.devices),
        "accepted": sum(any(answer.accepted for answer in device.answers) for device in swarm.devices),
        "refused": sum(any(not answer.accepted for answer in device.answers) for device in swarm.devices),
        "connections lost": sum(device.lost for device in swarm.devices),
        "seconds": round(took, 2),
    }


def _packet(first: int, body: bytes) -> bytes:
    length, size = bytearray(), len(body)
    while True:
        size, low = size >> 7, size & 127
        length.append(low | (128 if size else 0))
        if not size:
            return bytes([first]) + bytes(length) + body


def _length(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """A variable-length number at `at`, and where it ends; IndexError if it is not all here."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _take(buffer: bytearray) -> tuple[int, bytes] | None:
    """The next whole packet, taken off the buffer."""
    try:
        length, at = _length(buffer, 1)
    except IndexError:
        return None
    if len(buffer) < at + length:
        return None
    packet = buffer[0], bytes(buffer[at : at + length])
    del buffer[: at + length]
    return packet


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()


if __name__ == "__main__":
    of = ModelSpec.from_dict(json.loads(sys.argv[4]))
    print(json.dumps(asyncio.run(run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), of))))
