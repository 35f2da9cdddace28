"""The thread that computes: one job at a time, torch inside, events out."""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from device_runtime import accelerator
from device_runtime.accelerator import Wish
from device_runtime.assignments import BASE, blocks
from device_runtime.downloads import Held
from device_runtime.events import Event, OrderDone, Power, Profiled, StartTraining, TrainingDone, TrainingFailed
from device_runtime.joules import Joules
from device_runtime.orders import answered, evaluated
from device_runtime.profiler import Outcome, Profile
from device_runtime.progress import Progress, State, key_of
from device_runtime.quota import Busy
from device_runtime.sensing import Labelled, normalised, recognised
from device_runtime.wire import Wire
from models.local import Local
from models.spec import ModelSpec
from protocol.messages import BlockWork, Order, Update, update_id

if TYPE_CHECKING:
    from device_runtime.features import ResidentFeatures
    from device_runtime.trainer import Trained
    from models.network import Network

log = logging.getLogger("relief.device")

IDLE = 1.0  # seconds at birth in which the board's power at rest is measured


def torch_is_here() -> bool:
    """Whether this device can train, found out without importing anything."""
    return importlib.util.find_spec("torch") is not None


def prepare() -> None:
    """Import what training needs, on one thread: done before a CPU quota applies."""
    import torch

    import device_runtime.trainer  # noqa: F401

    torch.set_num_threads(1)


class Worker:
    """Trains in a thread of its own. `say` takes the resulting events and only enqueues.

    share          of one core that this process may use
    wish           where training should be done; `accelerator` is the name of where it is
    """

    def __init__(
        self,
        device: str,
        boot: str,
        say: Callable[[Event], None],
        joules: Joules,
        progress: Progress,
        share: float = 1.0,
        wish: Wish = "auto",
    ) -> None:
        self._wish, self._where, self._problem = wish, "cpu", ""
        self.accelerator = "cpu"
        self._progress = progress
        self._share = share
        self.profile = Profile()
        self.last: Outcome | None = None
        self.wire = Wire()
        self.busy = Busy()
        self._device, self._boot, self._say, self._joules = device, boot, say, joules
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._closing = False
        self._network: Network | None = None
        self._resident: ResidentFeatures | None = None
        self._bases: dict[str, bytes] = {}
        self._owned: tuple[str, ...] = ()  # the model's modalities that this device has, silent ones included
        self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)
        self._thread.start()

    # -- called by the runtime -------------------------------------------------------------------

    def use_model(self, spec: ModelSpec, owned: Sequence[str]) -> None:
        """Build the network of `spec` and measure how fast it is here, also while what is `owned` does not deliver."""
        self._jobs.put(lambda: self._use_model(spec, owned))

    def train(self, start: StartTraining, windows: Labelled) -> None:
        """Train; the end is told by TrainingDone or TrainingFailed."""
        self._jobs.put(lambda: self._train(start, windows))

    def obey(self, order: Order, held: Mapping[str, Held], windows: Labelled) -> None:
        """Carry out an order of kind profile or evaluate; the end is told by OrderDone."""
        self._jobs.put(lambda: self._say(self._answer(order, held, windows)))

    def cancel(self, assignment: str) -> None:
        """Stop this training at the next step border."""
        self._cancelled.add(assignment)

    def close(self, timeout: float) -> bool:
        """Stop at the next step border and end the thread; False if it takes longer than `timeout` seconds."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing:
            job()

    def _use_model(self, spec: ModelSpec, owned: Sequence[str]) -> None:
        self._network, self._problem = None, ""  # nothing may be trained on the model before
        try:
            self._take_up(spec, owned)
        except Exception as error:  # as in `_train`
            self._problem = f"this model cannot be trained here: {_said(error)}"
            log.error("%s", self._problem)

    def _take_up(self, spec: ModelSpec, owned: Sequence[str]) -> None:
        from device_runtime.features import ResidentFeatures
        from models.network import Network

        self._network, self._resident, self._bases = Network(spec), ResidentFeatures(), {}
        self.wire.forget()
        self.profile = Profile()
        self._owned = tuple(m for m in spec.names if m in owned)
        if not self._joules.idle_watts:
            self._joules.measure_idle(IDLE)
        if self._owned:
            self._calibrate(spec)
        self._say(Power(self._joules.source, self._joules.watts, self._joules.idle_watts))

    def _calibrate(self, spec: ModelSpec) -> None:
        """Measure the model wherever it may be trained, and train where it is fastest from now on."""
        from device_runtime.calibration import measure

        self._problem = accelerator.problem(self._wish)
        if self._problem:
            log.error("%s", self._problem)
            return
        accelerator.exact()
        measured = {}
        for where in accelerator.candidates(self._wish):
            try:
                measured[where] = measure(spec, self._owned, where=where, share=self._share, stop=lambda: self._closing)
            except RuntimeError as error:  # a torch that was built for other GPUs, or one whose memory is full
                self._problem = f"training on {where} is not possible: {str(error).splitlines()[0]}"
                log.warning("%s", self._problem)
        if not measured:
            return
        self._problem = ""
        if len(measured) > 1:
            each = ", ".join(f"{w} {1e6 * accelerator.step_seconds(t):.1f}" for w, t in measured.items())
            log.info("microseconds per window of a training step: %s", each)
        self._settle(accelerator.faster(measured))
        self.profile.observe(measured[self._where])
        self._tell_speed()

    def _settle(self, where: str) -> None:
        """Train there from now on; what is kept elsewhere is of no use."""
        from device_runtime.features import ResidentFeatures

        if where != self._where:
            self._where, self.profile, self._resident = where, Profile(), ResidentFeatures()
        self.accelerator = accelerator.name(where)
        log.info("training on %s", self.accelerator)

    def _tell_speed(self) -> None:
        self._say(Profiled(dict(self.profile.speed), self.accelerator))

    def _train(self, start: StartTraining, windows: Labelled) -> None:
        a = start.assignment
        try:
            network = self._network
            if network is None or self._problem:
                raise ValueError(self._problem or "no model is known yet")
            windows = recognised(windows, network.spec.classes)
            with self.busy.work():
                trained = self._trained(network, start, windows)
            if self._closing:
                return  # what was done is kept for the next life
            if not trained.deltas:
                late = "the time allowed was over before the first step"
                self._say(TrainingFailed(a.id, late))
            else:
                self._say(TrainingDone(a.id, self._update(start, trained, len(windows))))
                self._tell_speed()
                self._say(Power(self._joules.source, self._joules.watts, self._joules.idle_watts))
        except Exception as error:  # whatever torch raises must not end the thread: the device declines and lives on
            self._say(TrainingFailed(a.id, _said(error)))
        finally:
            self._cancelled.discard(a.id)
            if not self._closing:
                self._progress.clear()

    def _answer(self, order: Order, held: Mapping[str, Held], windows: Labelled) -> OrderDone:
        try:
            return self._carried_out(order, held, windows)
        except Exception as error:  # as in `_train`
            return answered(order, {}, _said(error))

    def _carried_out(self, order: Order, held: Mapping[str, Held], windows: Labelled) -> OrderDone:
        network = self._network
        if network is None:
            return answered(order, {}, "no model is known yet")
        spec = network.spec
        if order.kind == "profile":
            self._calibrate(spec)
            speed = {b: {"forward": s.forward, "backward": s.backward} for b, s in self.profile.speed.items()}
            found = {"seconds_per_window": speed, "prediction_error": self.profile.median_error}
            return answered(order, {**found, "accelerator": self.accelerator}, self._problem)
        windows = recognised(windows, spec.classes)
        here = tuple(m for m in spec.names if m in windows.x)
        needed = blocks(here, spec)
        lacking = [b for b in needed if b not in held]
        if lacking or not len(windows):
            return answered(order, {}, f"blocks {lacking} are not here" if lacking else "there are no labelled windows")
        self._load(network, {b: held[b] for b in needed}, double=False)
        return answered(order, evaluated(network, held, windows, here))

    def _trained(self, network: Network, start: StartTraining, windows: Labelled) -> Trained:
        import torch

        from device_runtime.trainer import kind, train

        a = start.assignment
        torch.set_num_threads(1)  # each thread has its own count
        local = Local.from_dict(a.training)
        self._load(network, start.blocks, double=local.double)
        x, y = normalised(windows, start.present, start.blocks)
        resume = self._progress.begin(key_of(start))
        if resume:
            log.info("round %d: goes on at step %d, where it was stopped", a.round, resume.step)
        budget = self._budget(start, resume)
        assert self._resident is not None  # made with the network
        made_of = self._made_of(start)
        lacking = {
            m: self._resident.lacking(m, kind(made_of[m], local, self._where), windows.ids) for m in start.present
        }
        predicted = self.profile.seconds(network.spec, start.present, a.steps, local, len(windows), lacking)
        trained = train(
            network,
            {m: torch.from_numpy(values).to(self._where) for m, values in x.items()},
            torch.from_numpy(y).to(self._where),
            a.steps,
            local,
            device=self._device,
            round=a.round,
            stop=budget,
            progress=self._progress,
            resume=resume,
            joules=self._joules.used,
            resident=self._resident,
            made_of=made_of,
            window_ids=windows.ids,
        )
        if not trained.partial and not resume:
            self.last = self.profile.settle(predicted, trained.wall)
        self.profile.observe(trained.times)
        return trained

    def _budget(self, start: StartTraining, earlier: State | None) -> Callable[[], bool]:
        """Asked at every step border, True when training has to end; seconds and joules count from the first time.

        earlier    what an earlier life came to in the same round: its seconds and joules count
        """
        seconds, joules = (earlier.seconds, earlier.joules) if earlier else (0.0, 0.0)
        a, ends = start.assignment, start.stop_at
        spent: Callable[[], bool] | None = None

        def over() -> bool:
            nonlocal ends, spent
            now = time.monotonic()
            if spent is None:
                spent = self._joules.allowance(a.joules, joules)
                ends = min(ends, now + a.seconds - seconds if a.seconds > 0 else math.inf)
            return self._closing or a.id in self._cancelled or now >= ends or spent()

        return over

    def _load(self, network: Network, blocks: Mapping[str, Held], *, double: bool) -> None:
        """Put these versions into the network; bases only where they changed."""
        import torch

        network.to(self._where, torch.float64 if double else torch.float32)
        for name, held in blocks.items():
            block = name.removesuffix(BASE)
            base = name != block
            if base and self._bases.get(block) == held.manifest.digest:
                continue
            network.load(block, held.vector, base=base)
            if base:
                self._bases[block] = held.manifest.digest

    def _made_of(self, start: StartTraining) -> dict[str, object]:
        """Modality -> what tells its frozen features apart: the encoder's base, and the normalisation it was fed by.

        The fleet's normalisation is renewed while its data grow.
        """
        said = {m: start.blocks[m].manifest for m in start.present}
        return {m: (self._bases.get(m), tuple(s.center), tuple(s.width)) for m, s in said.items()}

    def _update(self, start: StartTraining, trained: Trained, samples: int) -> Update:
        a, spent = start.assignment, self._joules.spent(trained.seconds)
        id = update_id(self._device, self._boot, a.id)
        tensors = self.wire.encode(id, trained.deltas, Local.from_dict(a.training).wire)
        work = {
            block: BlockWork(
                version=a.versions[block],
                steps=trained.steps[block],
                delta=tensors[block],
                seconds=trained.seconds.get(block, 0.0),
                joules=spent.blocks.get(block, 0.0),
            )
            for block in trained.deltas
        }
        return Update(
            id=id,
            device=self._device,
            boot=self._boot,
            round=a.round,
            epoch=a.epoch,
            assignment=a.id,
            blocks=work,
            samples=samples,
            loss=trained.loss,
            entropy=trained.entropy,
            partial=trained.partial,
            seconds=trained.wall,
            joules=spent.total,
            power_source=spent.source,
        )


def _said(error: Exception) -> str:
    """An error's own words where they were written to be read; otherwise its name stands before them."""
    from device_runtime.trainer import TrainingError

    return str(error) if isinstance(error, (TrainingError, ValueError)) else f"{type(error).__name__}: {error}"
