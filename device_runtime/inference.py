"""On-device inference with ONNX Runtime: any subset of present modalities, block versions swapped while it runs.

A model here is tensors at one version. Mode lora: the LoRA blocks are overridable inputs of one base session per
subset, and a version is an adapter that is activated per run. Mode full: a version is its own sessions, built in the
background. Either way the swap itself is one assignment, and the version before stays for an instant roll-back.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.onnx_parts import joined
from models.kit import Kit, Scale
from models.partition import Vector, partition
from models.spec import SHARED, Mode

Floats = npt.NDArray[np.float32]
SCORES = "scores"
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# TensorRT compiles every new graph for minutes, so it is used where the configuration names it.
DEFAULT = ("cuda", "cpu")
_SHM = Path("/dev/shm")


class Refused(ValueError):
    """Blocks that do not make up a whole new version; nothing was changed."""


@dataclass(frozen=True)
class Scores:
    """What the model says of N windows.

    classes, confidence    (N,) the likeliest class and its probability
    probabilities          (N, classes)
    versions               block -> version it was computed with
    seconds                wall-clock time of the run
    """

    classes: npt.NDArray[np.int64]
    confidence: Floats
    probabilities: Floats
    versions: Mapping[str, int]
    seconds: float


@dataclass
class _Version:
    """One version of the model. Sessions and adapters are made when a subset is first seen."""

    tensors: dict[str, Vector]
    versions: dict[str, int]
    sessions: dict[tuple[str, ...], Any]
    adapters: dict[tuple[str, ...], _Active] = field(default_factory=dict)


@dataclass(frozen=True)
class _Active:
    """Run options that switch an adapter on; they only point to it, so it is kept here."""

    options: Any
    adapter: Any


class Engine:
    """Runs the model of `kit` for a device that owns `modalities` (by default all of the model's).

    providers    in order of preference: tensorrt, cuda, cpu; those that are not there are passed over
    `predict` may be called from any thread while another swaps.
    """

    def __init__(
        self,
        kit: Kit,
        modalities: Collection[str] | None = None,
        *,
        providers: Sequence[str] = DEFAULT,
        threads: int = 1,
    ) -> None:
        self._runtime = _onnxruntime()
        self.kit = kit
        self._owned = tuple(m for m in kit.spec.names if modalities is None or m in modalities)
        unknown = set(modalities or ()) - set(kit.spec.names)
        if unknown or not self._owned:
            raise ValueError(f"inference: the model has {list(kit.spec.names)}, the device {sorted(modalities or ())}")
        self.providers = _available(self._runtime, providers)
        self._options = self._session_options(threads)
        self._cut = partition(kit.spec)
        self._lora = kit.spec.mode is Mode.LORA
        self._making = threading.Lock()
        self._builder: threading.Thread | None = None
        self._base = self._views(kit.base, frozen=True)
        blocks = {b: kit.blocks[b] for b in (*self._owned, SHARED)}
        versions = {b: kit.versions.get(b, kit.version) for b in blocks}
        self._now = _Version(self._views(blocks), versions, {})
        self._before: _Version | None = None
        self._last: tuple[str, ...] = ()  # the subset of the newest windows

    @property
    def versions(self) -> Mapping[str, int]:
        """Block -> version in use."""
        return self._now.versions

    # -- predicting ------------------------------------------------------------------------------

    def predict(self, windows: Mapping[str, Floats], scale: Mapping[str, Scale] | None = None) -> Scores:
        """Scores of N windows: {m: (N, channels, samples)}, raw; encoders of modalities not given are not run.

        scale    normalisation of the blocks in use; by default the kit's. KeyError or ValueError for windows that
                 are not the model's.
        """
        present = tuple(m for m in self._owned if m in windows)
        if not present or len(present) != len(windows):
            raise KeyError(
                f"inference: got windows of {sorted(windows)}, this device's model takes {list(self._owned)}"
            )
        feeds = self._feeds(present, windows, self.kit.scale if scale is None else scale)
        version, self._last = self._now, present
        session, options = self._ready(version, present)
        began = time.perf_counter()
        probabilities: Floats = session.run([SCORES], feeds, options)[0]
        seconds = time.perf_counter() - began
        classes = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(classes)), classes]
        return Scores(classes, confidence, probabilities, version.versions, seconds)

    def ready(self, subset: Collection[str]) -> tuple[Any, Any]:
        """ONNX Runtime's session and run options by which windows of these modalities are predicted now."""
        return self._ready(self._now, tuple(m for m in self._owned if m in subset))

    def _feeds(
        self, present: tuple[str, ...], windows: Mapping[str, Floats], scale: Mapping[str, Scale]
    ) -> dict[str, Floats]:
        feeds, count = {}, len(windows[present[0]])
        for name in present:
            x, i = windows[name], self.kit.spec.input(name)
            if x.shape != (count, i.channels, i.samples):
                raise ValueError(
                    f"inference: windows of {name} have shape {x.shape}, expected ({count}, {i.channels}, {i.samples})"
                )
            own = scale.get(name)
            if own is not None:
                x = (x - np.asarray(own.center, np.float32)[:, None]) / np.asarray(own.width, np.float32)[:, None]
            feeds[name] = np.ascontiguousarray(x, np.float32)
        return feeds

    def _ready(self, version: _Version, present: tuple[str, ...]) -> tuple[Any, Any]:
        """Session and run options of a version for a subset; makes what is missing."""
        session, adapter = version.sessions.get(present), version.adapters.get(present)
        if session is None or (self._lora and adapter is None):
            with self._making:
                session = version.sessions.get(present)
                if session is None:
                    session = version.sessions[present] = self._session(version, present)
                adapter = version.adapters.get(present)
                if self._lora and adapter is None:
                    adapter = version.adapters[present] = self._adapter(version, present)
        return session, adapter.options if adapter is not None else None

    # -- swapping --------------------------------------------------------------------------------

    def swap(self, blocks: Mapping[str, Vector], versions: Mapping[str, int], *, wait: bool = False) -> None:
        """Go over to a whole new set of blocks: those of all owned modalities and the shared one.

        Mode lora: in use when this returns. Mode full: built in the background (`wait`: in use when this returns).
        Raises Refused for a set that is partial, of other lengths, or not finite; the old version then stays.
        """
        fresh = self._accepted(blocks, versions)
        if self._lora:
            if self._last:  # the subset in use; the others get theirs with their next window
                fresh.adapters[self._last] = self._adapter(fresh, self._last)
            self._use(fresh)
            return
        self.settle()
        self._builder = threading.Thread(target=self._build, args=(fresh,), name="inference", daemon=True)
        self._builder.start()
        if wait:
            self.settle()

    def settle(self) -> None:
        """Return once no version is being built."""
        if self._builder is not None:
            self._builder.join()
            self._builder = None

    def roll_back(self) -> bool:
        """Return to the version before, at once; False if there is none. Calling it twice goes forth again."""
        if self._before is None:
            return False
        self._now, self._before = self._before, self._now
        return True

    def _use(self, fresh: _Version) -> None:
        self._before, self._now = self._now, fresh

    def _build(self, fresh: _Version) -> None:
        for present in tuple(self._now.sessions):
            self._ready(fresh, present)
        self._use(fresh)

    def _accepted(self, blocks: Mapping[str, Vector], versions: Mapping[str, int]) -> _Version:
        wanted = (*self._owned, SHARED)
        missing = [b for b in wanted if b not in blocks or b not in versions]
        if missing:
            raise Refused(f"blocks {', '.join(missing)} are missing; a version is swapped whole")
        other = sorted(set(blocks) - set(wanted))
        if other:
            raise Refused(f"blocks {', '.join(other)} do not belong to this device's model")
        try:
            tensors = self._views({b: np.array(blocks[b], np.float32) for b in wanted})
        except ValueError as error:
            raise Refused(str(error)) from None
        broken = sorted(name for name, values in tensors.items() if not np.isfinite(values).all())
        if broken:
            raise Refused(f"{broken[0]} holds values that are not finite")
        sessions = self._now.sessions if self._lora else {}
        return _Version(tensors, {b: versions[b] for b in wanted}, sessions)

    def _views(self, vectors: Mapping[str, Vector], *, frozen: bool = False) -> dict[str, Vector]:
        return {
            name: values
            for block, vector in vectors.items()
            for name, values in self._cut.views(block, np.asarray(vector, np.float32), base=frozen).items()
        }

    # -- ONNX Runtime ----------------------------------------------------------------------------

    def _session_options(self, threads: int) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _session(self, version: _Version, present: tuple[str, ...]) -> Any:
        model = joined(self.kit, present, {**self._base, **version.tensors})
        return self._runtime.InferenceSession(model, self._options, providers=list(self.providers))

    def _adapter(self, version: _Version, present: tuple[str, ...]) -> _Active:
        """Run options with the version's blocks. ONNX Runtime takes adapters from files only: in memory if possible."""
        values = {
            t.name: self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(version.tensors[t.name]))
            for block in (*present, SHARED)
            for t in self._cut.trainable[block]
        }
        form = self._runtime.AdapterFormat()
        form.set_adapter_version(1)
        form.set_model_version(1)
        form.set_parameters(values)
        adapter = self._runtime.LoraAdapter()
        with tempfile.NamedTemporaryFile(suffix=".onnx_adapter", dir=_SHM if _SHM.is_dir() else None) as file:
            form.export_adapter(file.name)
            adapter.Load(file.name)
        options = self._runtime.RunOptions()
        options.add_active_adapter(adapter)
        return _Active(options, adapter)


def _available(runtime: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in PROVIDERS]
    if unknown:
        raise ValueError(f"inference provider {unknown[0]!r}: use {', '.join(PROVIDERS)}")
    there = set(runtime.get_available_providers())
    chosen = [PROVIDERS[name] for name in (*wanted, "cpu") if PROVIDERS[name] in there]
    return tuple(dict.fromkeys(chosen))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise RuntimeError("inference needs ONNX Runtime; run: pip install 'relief-edge[infer]'") from None
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime
