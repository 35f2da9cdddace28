"""Writers for experiment trackers: TensorBoard and MLflow, each an extra."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes the numbers of one round. May be slow or fail: `tracking` keeps both away from the rounds."""

    def write(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files below `folder`. ImportError with the line to install where the extra is missing."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError('TensorBoard files need pip install "relief-edge[tensorboard,train]"') from None
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """One MLflow run at `uri`, a server's http address or a folder's file address, in experiment `relief`.

    The server is first asked when there is something to write, so that one that is away holds nobody up at the start.
    """

    def __init__(self, uri: str, name: str) -> None:
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise ImportError('MLflow needs pip install "relief-edge[mlflow]"') from None
        # Newer versions refuse folders unless told otherwise; whoever gives a folder's address has chosen one.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            self._client = MlflowClient(tracking_uri=uri)
        except MlflowException:
            raise ValueError(f"--mlflow {uri}: give a server as http://HOST:PORT or a folder as file:/PATH") from None
        self._name, self._run = name, ""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        self._run = self._run or self._begin()
        now = int(1000 * time.time())
        metrics = [Metric(name.replace(" ", "_"), value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def _begin(self) -> str:
        found = self._client.get_experiment_by_name("relief")
        experiment = found.experiment_id if found else self._client.create_experiment("relief")
        return str(self._client.create_run(experiment, run_name=self._name).info.run_id)

    def close(self) -> None:
        if self._run:
            self._client.set_terminated(self._run)
