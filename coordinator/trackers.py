"""Writers for experiment trackers: TensorBoard and MLflow, each an extra, fed by the summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("relief.coordinator")


class Tracker(Protocol):
    """Takes one number of one round."""

    def write(self, name: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files below `folder`. ImportError with the line to install where the extra is missing."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError('TensorBoard files need pip install "relief-edge[tensorboard,train]"') from None
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """One MLflow run at `uri` (a folder's file: address or a server) in experiment `relief`."""

    def __init__(self, uri: str, name: str) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise ImportError('MLflow needs pip install "relief-edge[mlflow]"') from None
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name("relief")
        experiment = found.experiment_id if found else self._client.create_experiment("relief")
        self._run = self._client.create_run(experiment, run_name=name).info.run_id

    def write(self, name: str, value: float, step: int) -> None:
        self._client.log_metric(self._run, name.replace(" ", "_"), value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Tracking:
    """Hands every round and every evaluation of the summaries to a tracker, once."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._round = self._scored = 0

    def take(self, round: int, fields: dict[str, Any]) -> None:
        """A summary, as it was published."""
        for one in fields.get("trail", []):
            if one["round"] > self._round:
                self._round = one["round"]
                for name, value in _numbers(one):
                    self._tracker.write(name, value, one["round"])
        for one in fields.get("scored", []):
            if one["round"] > self._scored:
                self._scored = one["round"]
                for name, value in one.items():
                    if name not in ("round", "at"):
                        self._tracker.write(f"f1/{name}", float(value), one["round"])

    def close(self) -> None:
        """Flush and end the run; a tracker that cannot is only named, for the rounds are done."""
        try:
            self._tracker.close()
        except Exception:
            log.exception("%s: not all could be written", type(self._tracker).__name__)


def _numbers(one: dict[str, Any]) -> list[tuple[str, float]]:
    plain = ("loss", "joules", "bytes_up", "bytes_down", "updates", "partial")
    numbers = [(f"round/{name}", float(one[name])) for name in plain]
    numbers.append(("round/seconds", one["ended"] - one["began"]))
    return numbers + [(f"divergence/{block}", float(value)) for block, value in one["divergence"].items()]
