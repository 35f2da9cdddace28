"""`relief coordinator`: run the coordinator of a fleet."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.service import Coordinator
from coordinator.strategies import STRATEGIES, Strategy, strategy
from coordinator.trackers import Tracker
from coordinator.tracking import Tracking
from models.partition import Vector
from models.spec import Mode, ModelSpec
from protocol.connection import connection
from protocol.memory import MemoryBroker
from tools import log as logs
from tools.configuration import EvaluationConfig, File, dataset, read
from tools.round_log import RoundLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coordinator.scorer import Snapshot

app = typer.Typer(no_args_is_help=True, help="The coordinator: assigns blocks and budgets, aggregates per cohort.")

log = logging.getLogger("relief.coordinator")


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="Configuration file (TOML).", exists=True, dir_okay=False)],
    metrics: Annotated[str | None, typer.Option(help="Serve Prometheus metrics on HOST:PORT.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write TensorBoard files into this folder.")] = None,
    mlflow: Annotated[str | None, typer.Option(help="Write an MLflow run: http://HOST:PORT or file:/PATH.")] = None,
) -> None:
    """Coordinate the fleet until interrupted, or until the configured rounds are done.

    Example: relief coordinator run --config fleet.toml
    """
    file = read(config)
    logs.configure(fleet=file.fleet)
    coordinator = build(file)
    coordinator.listeners.append(lambda round, fields: logs.bind(round=round))
    coordinator.listeners.append(RoundLog(file.coordinator.expect).take)
    stop = threading.Event()

    def end(signum: int, frame: object) -> None:
        stop.set()
        coordinator.wake()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with watched(coordinator, metrics, tensorboard, mlflow, file.fleet):
        coordinator.run(stop)
    if coordinator.stopped:
        log.error("%s", coordinator.stopped)
    elif coordinator.core.finished:
        log.info("all %d rounds are done; the record is in %s", file.coordinator.rounds, file.coordinator.folder)
    if any(thread.name == "scorer" for thread in threading.enumerate()):
        # It computes in torch still; the interpreter's own end would take that apart under it and abort.
        logging.shutdown()
        os._exit(1 if coordinator.stopped else 0)
    if coordinator.stopped:
        raise typer.Exit(1)


@contextlib.contextmanager
def watched(
    coordinator: Coordinator, metrics: str | None, tensorboard: Path | None, mlflow: str | None, fleet: str
) -> Iterator[None]:
    """The coordinator's numbers go to these places while the block runs."""
    with contextlib.ExitStack() as stack:
        if metrics:
            stack.callback(_prometheus(coordinator, metrics))
        trackers: list[Tracker] = []
        if tensorboard or mlflow:
            from coordinator.trackers import MLflow, TensorBoard

            trackers += [TensorBoard(tensorboard)] if tensorboard else []
            trackers += [MLflow(mlflow, fleet)] if mlflow else []
        for tracker in trackers:
            tracking = Tracking(tracker)
            coordinator.listeners.append(tracking.take)
            stack.callback(tracking.close)
        yield


def _prometheus(coordinator: Coordinator, where: str) -> Callable[[], None]:
    try:
        from coordinator.metrics import FleetMetrics
        from tools.metrics.endpoint import address, endpoint
    except ImportError:
        raise ImportError('--metrics needs pip install "relief-edge[metrics]"') from None
    collector = FleetMetrics()
    port, end = endpoint(collector, *address(where))
    coordinator.listeners.append(collector.take)
    log.info("metrics: http://%s:%d/metrics", address(where)[0], port)
    return end


def chosen(name: str) -> type[Strategy]:
    """The method that the file names. ValueError where nobody knows it or real devices cannot do their part of it."""
    method = strategy(name)
    if method.simulator_only:
        real = ", ".join(sorted(known for known, cls in STRATEGIES.items() if not cls.simulator_only))
        raise ValueError(
            f"coordinator.strategy: {name!r} runs in the simulator alone (relief simulate --method {name}); "
            f"choose one of {real}"
        )
    return method


def build(file: File, memory: MemoryBroker | None = None) -> Coordinator:
    """A coordinator as the file describes it, over two connections of their own identities."""
    c = file.coordinator
    spec = file.model.spec(dataset(file.model.dataset))
    method = chosen(c.strategy)(spec, c.settings())
    start, base, scales = _base(file.model.base, spec) if spec.mode is Mode.LORA else (None, None, None)
    return Coordinator(
        fleet=file.fleet,
        spec=spec,
        strategy=method,
        pace=c.pace(),
        defence=c.defence(),
        folder=c.folder,
        control=connection(file.broker, "coordinator-control", memory),
        bulk=connection(file.broker, "coordinator-bulk", memory),
        start=start,
        base=base,
        scales=scales,
        evaluate=scoring(file.evaluation, spec, base, zero_fill=method.local().zero_fill) if file.evaluation else None,
    )


def _base(
    folder: Path | None, spec: ModelSpec
) -> tuple[dict[str, Vector], dict[str, Vector], dict[str, tuple[list[float], list[float]]]]:
    """(trainable start, frozen base, normalisation) from what `relief pretrain` wrote."""
    from coordinator.checkpoint import latest
    from models.pretrain import lora_from

    saved = latest(folder) if folder else None
    if saved is None:
        raise typer.BadParameter(
            f"mode lora needs a base model, and {folder or 'model.base'} holds none: make one with "
            f'`relief pretrain --dataset {{name}} --subjects {{ids}} --out FOLDER` and set model.base = "FOLDER"'
        )
    start, base = lora_from(saved.blocks, spec)
    return start, base, {m: (list(c), list(w)) for m, (c, w) in saved.meta["scales"].items()}


def scoring(
    config: EvaluationConfig, spec: ModelSpec, base: dict[str, Vector] | None, *, zero_fill: bool
) -> Callable[[Snapshot], dict[str, float]]:
    """Scores a snapshot; recordings are read at the first call, in the scorer's own thread."""
    found: list[Callable[[Snapshot], dict[str, float]]] = []

    def evaluate(snapshot: Snapshot) -> dict[str, float]:
        if not found:
            found.append(_evaluator(config, spec, base, zero_fill=zero_fill))
        return found[0](snapshot)

    return evaluate


def _evaluator(
    config: EvaluationConfig, spec: ModelSpec, base: dict[str, Vector] | None, *, zero_fill: bool
) -> Callable[[Snapshot], dict[str, float]]:
    import numpy as np
    import torch

    from coordinator.evaluation import Evaluator, Labelled, Owner
    from models.partition import initial
    from sensors.splits import between
    from sensors.windows import Windows, cut

    torch.set_num_threads(1)
    data = dataset(config.dataset)
    window_s = spec.inputs[0].samples / data.rate_hz
    seen = sorted({s for owner in config.owner for s in owner.subjects})

    def windows(subjects: list[str]) -> Windows:
        return cut((r for s in subjects for r in data.recordings(s)), data, window_s)

    def labelled(w: Windows) -> Labelled:
        return Labelled(w.x, w.y, np.array(w.subjects)[w.subject])

    evaluator = Evaluator(
        spec,
        labelled(between(windows(seen), 5 / 6, 1.0)),
        labelled(windows(list(config.held_out))),
        [Owner(owner.modalities, owner.subjects) for owner in config.owner],
    )
    frozen = base or initial(spec)[1]
    return lambda snapshot: evaluator(snapshot.blocks, frozen, snapshot.scales, zero_fill=zero_fill)
