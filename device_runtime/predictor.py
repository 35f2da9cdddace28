"""Predicts while the device runs: the newest window, by the newest whole set of blocks, on a thread of its own."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.assignments import BASE
from device_runtime.downloads import Held
from device_runtime.inference import DEFAULT, Engine, Refused
from device_runtime.inference_config import InferenceConfig
from models import kit as kits
from models.kit import KitError, Scale
from models.spec import SHARED, ModelSpec
from protocol.messages import Prediction
from sensors.recording import Floats

__all__ = ["InferenceConfig", "Predictor"]

log = logging.getLogger("relief.device")

_KEPT = 100  # run times from which the median is made


class Predictor:
    """`latest` gives the newest window of what is present; `publish` takes predictions, from the predictor's thread.

    `problem` says why there are none.
    """

    def __init__(
        self,
        folder: Path,
        latest: Callable[[], tuple[float, float, dict[str, Floats]] | None],
        publish: Callable[[Prediction], None],
        *,
        owned: tuple[str, ...],
        every: float = 1.0,
        providers: tuple[str, ...] = DEFAULT,
    ) -> None:
        self.problem = ""
        self.count = 0
        self._folder, self._latest, self._publish = folder, latest, publish
        self._owned, self._every, self._providers = owned, every, providers
        self._engine: Engine | None = None
        self._scale: dict[str, Scale] = {}
        self._offered: tuple[ModelSpec, dict[str, Held]] | None = None
        self._seen: dict[str, bytes] = {}  # block -> digest of what was last taken or refused
        self._times: deque[float] = deque(maxlen=_KEPT)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start predicting; a kit that cannot be used is a `problem`, not an error."""
        self._thread = threading.Thread(target=self._run, name="predictor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(5.0)

    def offer(self, spec: ModelSpec | None, held: Mapping[str, Held]) -> None:
        """The blocks that are here, complete at their newest versions; cheap where nothing is new. From any thread."""
        ours = {b: held[b] for b in (*self._wanted(), *(m + BASE for m in self._wanted())) if b in held}
        if spec is not None and any(self._seen.get(b) != h.manifest.digest for b, h in ours.items()):
            self._offered = spec, ours

    def roll_back(self) -> bool:
        """Return to the version before, until a newer one comes; False if there is none."""
        return self._engine is not None and self._engine.roll_back()

    def adopt(self) -> bool:
        """Take up the newest blocks again after a roll-back, with the next `offer`; False while there is no model."""
        self._seen = {}
        return self._engine is not None

    def versions(self) -> dict[str, int]:
        """Block -> version in use."""
        return dict(self._engine.versions) if self._engine else {}

    def values(self) -> dict[str, Any]:
        """For telemetry: what is in use, how long a run takes, what is wrong."""
        engine = self._engine
        found: dict[str, Any] = {"predictions": self.count}
        if self._times:
            found["inference_ms"] = round(statistics.median(self._times) * 1e3, 3)
        if engine is not None:
            found["inference_versions"] = dict(engine.versions)
            found["inference_provider"] = engine.providers[0]
        if self.problem:
            found["inference_problem"] = self.problem
        return found

    def _wanted(self) -> tuple[str, ...]:
        return (*self._owned, SHARED)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            kit = kits.load(self._folder)
            self._scale = dict(kit.scale)
            self._engine = Engine(kit, self._owned, providers=self._providers)
        except (KitError, ValueError, RuntimeError) as error:
            self._trouble(str(error))
            return
        due = time.monotonic()
        last_end = float("-inf")
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every, time.monotonic())
            self._take_offer(self._engine)
            newest = self._latest()
            if newest is None or newest[1] <= last_end or not newest[2]:
                continue
            last_end = newest[1]
            self._predict(self._engine, *newest)

    def _take_offer(self, engine: Engine) -> None:
        offer, self._offered = self._offered, None
        if offer is None:
            return
        spec, held = offer
        self._seen = {b: h.manifest.digest for b, h in held.items()}
        if spec != engine.kit.spec:
            self._trouble(f"the fleet's model is not that of the kit {self._folder}; export it again: relief export")
            return
        bases = {b[: -len(BASE)]: h for b, h in held.items() if b.endswith(BASE)}
        if not all(np.array_equal(engine.kit.base[m], h.vector) for m, h in bases.items()):
            self._trouble(f"the fleet's base is not that of the kit {self._folder}; export it again: relief export")
            return
        blocks = {b: h for b, h in held.items() if not b.endswith(BASE)}
        try:
            engine.swap({b: h.vector for b, h in blocks.items()}, {b: h.manifest.version for b, h in blocks.items()})
        except Refused as error:
            self._trouble(str(error))
            return
        for block, h in blocks.items():
            if h.manifest.center:
                self._scale[block] = Scale(tuple(h.manifest.center), tuple(h.manifest.width))
        self.problem = ""

    def _predict(self, engine: Engine, start: float, end: float, windows: dict[str, Floats]) -> None:
        try:
            scores = engine.predict({m: x for m, x in windows.items() if m in self._owned}, self._scale)
        except (KeyError, ValueError) as error:
            self._trouble(str(error))
            return
        self._times.append(scores.seconds)
        self.count += 1
        self._publish(
            Prediction(
                start=start,
                end=end,
                label=int(scores.classes[-1]),
                confidence=float(scores.confidence[-1]),
                versions=dict(scores.versions),
            )
        )

    def _trouble(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("inference: %s", problem)
        self.problem = problem
