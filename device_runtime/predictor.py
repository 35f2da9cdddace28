"""Predicts while the device runs: the newest window, on a thread of its own, by the newest whole set of blocks or by
the registered version that the device has adopted."""

from __future__ import annotations

import logging
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.assignments import BASE
from device_runtime.downloads import Held
from device_runtime.inference import DEFAULT, Engine, Refused
from device_runtime.inference_config import InferenceConfig
from device_runtime.sensing import Labelled, recognised
from device_runtime.shelf import Shelf
from models import kit as kits
from models.kit import KitError, Scale
from models.spec import SHARED, ModelSpec
from protocol.messages import Manifest, Prediction
from sensors.recording import Floats

__all__ = ["InferenceConfig", "Predictor"]

log = logging.getLogger("relief.device")

_KEPT = 100  # run times from which the median is made
_BATCH = 256  # windows judged at once
_BACK = 2  # adopted versions that are kept: the one in use, and the one before it


@dataclass(frozen=True)
class InUse:
    """Blocks of this registered version, or, with 0, the newest as they come; and the normalisation that is theirs."""

    release: int = 0
    scale: Mapping[str, Scale] = field(default_factory=dict)


class Predictor:
    """`latest` gives the newest window of what is present; `publish` takes predictions, from the predictor's thread.

    shelf       keeps adopted versions over restarts
    changed     takes the registered version in use whenever it changes, 0 for none; from any thread
    `problem` says why there are no predictions.
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
        shelf: Shelf | None = None,
        changed: Callable[[int], None] = lambda version: None,
    ) -> None:
        self.problem = ""
        self.count = 0
        self._folder, self._latest, self._publish = folder, latest, publish
        self._owned, self._every, self._providers = owned, every, providers
        self._engine: Engine | None = None
        self._shelf, self._changed = shelf, changed
        self._changing = threading.Lock()
        self._stack = [InUse()]  # the newest blocks, and above them what was adopted: the last one is in use
        self._scale_before: Mapping[str, Scale] = {}  # of the engine's version before
        self._instant = False  # whether the engine's version before is what the stack says
        self._newest: tuple[ModelSpec, dict[str, Held]] | None = None
        self._offered: tuple[ModelSpec, dict[str, Held]] | None = None
        self._jobs: queue.SimpleQueue[Callable[[Engine | None], None]] = queue.SimpleQueue()
        self._seen: dict[str, Manifest] = {}  # block -> what was last taken or refused
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
        if spec is not None:
            self._newest = spec, ours
            # Not by the digest alone: the same bytes may come with another normalisation.
            if any(self._seen.get(b) != h.manifest for b, h in ours.items()):
                self._offered = spec, ours

    def roll_back(self) -> bool:
        """Return to what was in use before the last adopted version; False if there is nothing.

        Without one, to the newest blocks' version before, until newer ones come; called twice, that goes forth again.
        """
        with self._changing:
            engine = self._engine
            if engine is None:
                return False
            if len(self._stack) == 1:
                if not engine.roll_back():
                    return False
                scale, self._scale_before = self._scale_before, self._now.scale
                self._stack[0] = InUse(0, scale)
                return True
            target = self._stack[-2]
            if self._instant:
                engine.roll_back()
            elif target.release:
                blocks = self._shelf.get(target.release) if self._shelf else None
                if blocks is None:
                    return False
                _swap(engine, blocks)
            else:
                self._seen, self._offered = {}, self._newest
            self._use(self._stack[:-1], instant=False)
        return True

    def adopt(self) -> bool:
        """Predict by the newest blocks as they come, again; False while there is no model."""
        with self._changing:
            if self._engine is None:
                return False
            self._seen, self._offered = {}, self._newest
            if self._now.release:
                self._use([InUse(0, self._now.scale)], instant=False)
        return True

    def release(self, version: int, spec: ModelSpec, blocks: Mapping[str, Held], done: Callable[[str], None]) -> None:
        """Predict by a registered version from now on; `done` takes why not, or nothing, from our thread."""
        self._jobs.put(lambda engine: done(self._released(engine, version, spec, blocks)))

    def judge(self, windows: Labelled, done: Callable[[dict[str, Any], str], None]) -> None:
        """How what is in use now does on labelled windows; `done` takes it, or why not, from the predictor's thread.

        The confusion matrix counts windows: row the label, column what the model says.
        """
        self._jobs.put(lambda engine: done(*self._judged(engine, windows)))

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
            found["inference_release"] = self._now.release
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
            engine = Engine(kit, self._owned, providers=self._providers)
            self._stack = [InUse(0, dict(kit.scale))]
            self._scale_before = dict(kit.scale)
            self._restore(engine)
            self._engine = engine
        except (KitError, ValueError, RuntimeError) as error:
            self._trouble(str(error))
            while not self._over.wait(self._every):
                self._work(None)  # whoever asks is told why not
            return
        due = time.monotonic()
        last_end = float("-inf")
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every, time.monotonic())
            self._work(engine)
            self._take_offer(engine)
            newest = self._latest()
            if newest is None or newest[1] == last_end or not newest[2]:
                continue
            last_end = newest[1]
            self._predict(engine, *newest)

    def _work(self, engine: Engine | None) -> None:
        while not self._jobs.empty():
            self._jobs.get()(engine)

    def _take_offer(self, engine: Engine) -> None:
        if self._now.release:
            return
        offer, self._offered = self._offered, None
        if offer is None:
            return
        spec, held = offer
        self._seen = {b: h.manifest for b, h in held.items()}
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
        with self._changing:
            self._scale_before, self._stack = self._now.scale, [InUse(0, self._scale_of(blocks))]
        self.problem = ""

    def _scale_of(self, blocks: Mapping[str, Held]) -> dict[str, Scale]:
        """The normalisation that comes with blocks; what they say nothing of stays."""
        said = {b: h.manifest for b, h in blocks.items() if h.manifest.center}
        return {**self._now.scale, **{b: Scale(tuple(m.center), tuple(m.width)) for b, m in said.items()}}

    def _released(self, engine: Engine | None, version: int, spec: ModelSpec, blocks: Mapping[str, Held]) -> str:
        if engine is None:
            return self.problem
        if spec != engine.kit.spec:
            return f"the fleet's model is not that of the kit {self._folder}; export it again: relief export"
        if version == self._now.release:
            return ""
        try:
            if self._shelf:
                self._shelf.put(version, blocks)
            _swap(engine, blocks)
        except OSError as error:
            return f"version {version} cannot be kept: {error.strerror}"
        except Refused as error:
            return str(error)
        with self._changing:
            fresh = InUse(version, self._scale_of(blocks))
            self._use([self._stack[0], *self._stack[1:][1 - _BACK :], fresh], instant=True)
        self.problem = ""
        return ""

    @property
    def _now(self) -> InUse:
        return self._stack[-1]

    def _use(self, stack: list[InUse], *, instant: bool) -> None:
        self._stack, self._instant = stack, instant
        if self._shelf:
            try:
                self._shelf.point([one.release for one in stack[1:]])
            except OSError as error:
                self._trouble(f"which version is in use cannot be written down: {error.strerror}")
        self._changed(self._now.release)

    def _restore(self, engine: Engine) -> None:
        """What was adopted in an earlier life, and the version before it."""
        for version in self._shelf.in_use() if self._shelf else ():
            blocks = self._shelf.get(version) if self._shelf else None
            try:
                if blocks is None:
                    raise Refused("its file is damaged")
                _swap(engine, blocks)
            except Refused as error:
                self._trouble(f"version {version}, adopted earlier, cannot be used: {error}")
                continue
            self._stack.append(InUse(version, self._scale_of(blocks)))
            self._instant = True
        if self._now.release:
            self._changed(self._now.release)

    def _judged(self, engine: Engine | None, windows: Labelled) -> tuple[dict[str, Any], str]:
        if engine is None:
            return {}, self.problem
        classes = engine.kit.spec.classes
        windows = recognised(windows, classes)
        if not len(windows):
            return {}, "there are no labelled windows to judge by"
        confusion = np.zeros((classes, classes), np.int64)
        x = {m: values for m, values in windows.x.items() if m in self._owned}
        for begin in range(0, len(windows), _BATCH):
            part = {m: values[begin : begin + _BATCH] for m, values in x.items()}
            try:
                said = engine.predict(part, self._now.scale).classes
                np.add.at(confusion, (windows.y[begin : begin + _BATCH], said), 1)
            except (KeyError, ValueError) as error:  # windows that are not the model's
                return {}, str(error)
        values = {
            "windows": len(windows),
            "accuracy": float(np.trace(confusion)) / len(windows),
            "confusion": confusion.tolist(),
            "versions": dict(engine.versions),
            "release": self._now.release,
        }
        return values, ""

    def _predict(self, engine: Engine, start: float, end: float, windows: dict[str, Floats]) -> None:
        try:
            scores = engine.predict({m: x for m, x in windows.items() if m in self._owned}, self._now.scale)
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


def _swap(engine: Engine, blocks: Mapping[str, Held]) -> None:
    vectors = {b: held.vector for b, held in blocks.items()}
    engine.swap(vectors, {b: held.manifest.version for b, held in blocks.items()}, wait=True)
