"""One cell of an experiment, run in a process of its own: a method on a world, its curve as plain values."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from coordinator.strategies import strategy
from coordinator.strategies.base import Strategy
from coordinator.strategies.fedbuff import FedBuff
from coordinator.strategies.relief import Relief
from coordinator.strategies.unimodal import Unimodal
from models.partition import Vector
from models.spec import Mode
from tools.lab.base import starting_point
from tools.lab.buffered import BufferedRun
from tools.lab.engine import Engine
from tools.lab.fleet import fleet
from tools.lab.plan import Cell, Experiment, Method
from tools.lab.simulate import Point, Run
from tools.lab.unimodal import UnimodalRun
from tools.lab.world import World, world

ENDLESS = 20_000  # rounds after which a run has lost its way to the clock that ends it

Start = tuple[World, Engine, Mapping[str, Vector], Mapping[str, Vector]]


def run_cell(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Run the cell; plain values ready for JSON. The same cell gives the same values.

    RuntimeError for a run whose clock hardly moves.
    """
    began, cpu = time.perf_counter(), time.process_time()
    method = experiment.methods[cell.method]
    where, engine, blocks, frozen = prepared(experiment.of(method).model_dump_json(), cell)
    chosen = made(method, where, experiment, cell)
    rounds = ENDLESS if cell.clock else experiment.rounds[cell.mode.value]
    run = run_of(chosen)(
        where,
        chosen,
        engine,
        dict(blocks),
        dict(frozen),
        rounds=rounds,
        every=experiment.every,
        watch=lambda point: bool(cell.clock) and point.seconds >= cell.clock,
        compare=method.regret and not cell.tuning,
    )
    points = run.go()
    if points[-1:] and points[-1].round == ENDLESS:
        at = f"{points[-1].seconds:.3g} of {cell.clock:.3g} simulated seconds"
        raise RuntimeError(f"{cell.method} on {cell.fleet}: {ENDLESS} rounds took it to {at}; its rounds are too short")
    return {
        "method": cell.method,
        "fleet": cell.fleet,
        "mode": cell.mode.value,
        "fold": cell.fold,
        "seed": cell.seed,
        "rate": cell.rate,
        "tuning": cell.tuning,
        "rare": where.judges["test"].rare,
        "wall": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "points": [plain(point) for point in points],
        "regret": [one.__dict__ for one in run.regrets],
    }


def run_of(strategy: Strategy) -> type[Run]:
    """How a strategy is run: in rounds, without them, or with several models a device."""
    if isinstance(strategy, Unimodal):
        return UnimodalRun
    return BufferedRun if isinstance(strategy, FedBuff) else Run


def plain(point: Point) -> dict[str, float]:
    """A point as one row of the tidy table."""
    values = dict(point.__dict__)
    return {**{k: v for k, v in values.items() if k != "scores"}, **point.scores}


def made(method: Method, where: World, experiment: Experiment, cell: Cell) -> Strategy:
    """The method's strategy with its options set. ValueError for an option that it does not have."""
    cls = strategy(method.strategy)
    unknown = [name for name in method.options if not hasattr(cls, name)]
    if unknown:
        raise ValueError(f"method {cell.method}: strategy {method.strategy} has no option {', '.join(unknown)}")
    if method.regret and not issubclass(cls, Relief):
        raise ValueError(f"method {cell.method}: regret is of RELIEF and its ablations, not of {method.strategy}")
    if method.options:
        cls = type(cls.__name__, (cls,), dict(method.options))
    return cls(where.spec, experiment.settings(method, cell.rate, cell.seed))


def prepared(experiment_json: str, cell: Cell) -> Start:
    """World, engine and starting point; the last one is kept, since neighbouring cells share it."""
    return _prepared(experiment_json, cell.fleet, cell.mode, cell.fold, cell.seed, cell.tuning)


@lru_cache(maxsize=1)
def _prepared(experiment_json: str, fleet_name: str, mode: Mode, fold: int, seed: int, tuning: bool) -> Start:
    experiment = Experiment.model_validate_json(experiment_json)
    where = world(
        fleet(fleet_name),
        fold,
        seed,
        model=experiment.spec(mode),
        public=experiment.public.get(mode.value, 0),
        tuning=tuning,
    )
    blocks, frozen = starting_point(where)
    return where, Engine(where.spec, where.train.x, where.train.y, frozen), blocks, frozen
