"""A device process for the round benchmark: the real runtime, whose trainer hands back a prepared change at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from device_runtime.config import DeviceConfig, Settings
from device_runtime.events import Profiled, StartTraining, TrainingDone
from device_runtime.runtime import Runtime
from device_runtime.sensing import Labelled
from device_runtime.worker import Worker
from models import ModelSpec, partition
from protocol.config import BrokerConfig
from protocol.messages import BlockSpeed, BlockWork, Tensor, Update, update_id
from protocol.mqtt import MqttTransport
from tests.worlds import FixedWindows


class Instant(Worker):
    """The worker without its training: the same messages, at once."""

    _spec: ModelSpec

    def use_model(self, spec: ModelSpec, owned: Sequence[str]) -> None:
        self._spec = spec
        speed = dict.fromkeys(partition(spec).blocks, BlockSpeed(forward=1e-6, backward=1e-6))
        self._say(Profiled(speed))

    def train(self, start: StartTraining, windows: Labelled) -> None:
        a, cut = start.assignment, partition(self._spec)
        work = {
            block: BlockWork(version=a.versions[block], steps=steps, delta=Tensor.of(np.zeros(cut.size(block), "<f4")))
            for block, steps in a.steps.items()
        }
        update = Update(
            id=update_id(self._device, self._boot, a.id),
            device=self._device,
            boot=self._boot,
            round=a.round,
            epoch=a.epoch,
            assignment=a.id,
            blocks=work,
            samples=len(windows),
        )
        self._say(TrainingDone(a.id, update))


def main() -> None:
    """Arguments: port, device id, state folder."""
    port, device, state = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    settings = Settings(
        fleet="bench",
        broker=BrokerConfig(port=port),
        device=DeviceConfig(id=device, modalities=("a",), state=state, telemetry=0),
    )
    x = {"a": np.random.default_rng(0).standard_normal((8, 6, 128)).astype(np.float32)}
    sensing = FixedWindows(x, np.zeros(8, np.int64))
    runtime = Runtime(settings, MqttTransport(settings.broker, device), sensing, Instant)
    signal.signal(signal.SIGTERM, lambda *_: runtime.stop())
    sys.exit(runtime.run())


if __name__ == "__main__":
    main()
