"""Cells of an experiment on a Ray cluster (extra `ray`): the same function, other machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tools.lab.cells import run_cell
from tools.lab.plan import Cell, Experiment


def run_on_ray(experiment: Experiment, cells: Sequence[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run the cells as Ray tasks of one core each, results as they come. RAY_ADDRESS names the cluster.

    ImportError, with the line that installs it, where Ray is missing.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("Ray is not installed: pip install 'relief-edge[train,ray]'") from None
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    task = ray.remote(num_cpus=1)(run_cell)
    waiting = {task.remote(experiment, cell): cell for cell in cells}
    while waiting:
        ready, _ = ray.wait(list(waiting))
        for reference in ready:
            yield waiting.pop(reference), ray.get(reference)
