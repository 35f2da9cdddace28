"""What a device is fitted with by its configuration: something that counts energy, something that predicts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from device_runtime.config import DeviceConfig
from device_runtime.joules import ConfiguredWatts, Joules, meter
from device_runtime.sensing import Sensing
from protocol.messages import Prediction

if TYPE_CHECKING:
    from device_runtime.inference_config import InferenceConfig
    from device_runtime.power import Meter
    from device_runtime.predictor import Predictor
    from device_runtime.shelf import Shelf

log = logging.getLogger("relief.device")


def energy(config: DeviceConfig) -> tuple[Joules, Meter | None]:
    """What counts joules, and the running meter behind it if there is one: its owner stops it."""
    if not config.watts and config.power:
        metered, told = meter(config.power, config.idle_watts)
        log.info("%s", told)
        if metered:
            return metered, metered.meter
    return ConfiguredWatts(config.watts, time.monotonic), None


def predictor(
    config: InferenceConfig,
    owned: tuple[str, ...],
    sensing: Sensing,
    publish: Callable[[Prediction], None],
    *,
    shelf: Shelf,
    changed: Callable[[int], None],
) -> Predictor:
    """Inference on the newest windows of what is sensed, not yet open."""
    from device_runtime.predictor import Predictor

    return Predictor(
        config.kit, sensing.latest, publish, owned=owned, every=config.every, providers=config.providers,
        shelf=shelf, changed=changed,
    )  # fmt: skip
