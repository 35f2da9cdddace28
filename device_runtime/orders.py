"""Orders that a device carries out beside its rounds: measure yourself, evaluate the model on your own windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from device_runtime.downloads import Held
from device_runtime.events import OrderDone
from device_runtime.sensing import Labelled, normalised
from models.spec import SHARED
from protocol.messages import Order, Report

if TYPE_CHECKING:
    from device_runtime.predictor import Predictor
    from models.network import Network

BATCH = 256  # windows evaluated at once


def answered(order: Order, values: Mapping[str, Any], problem: str = "") -> OrderDone:
    """The report on an order; it went well where there is no problem."""
    return OrderDone(Report(id=order.id, kind=order.kind, ok=not problem, reason=problem, values=dict(values)))


def by_inference(order: Order) -> bool:
    """Whether an order asks how the model does that predicts here, which may not be the newest."""
    return order.kind == "evaluate" and order.args.get("by") == "inference"


def switched(order: Order, predictor: Predictor | None) -> OrderDone:
    """Go back to the model's version before, or forth to the newest; what else is asked for is not known here.

    Adopting a registered version takes its blocks: that is `device_runtime.agent`'s.
    """
    if predictor is None or order.kind not in ("adopt", "rollback"):
        return answered(order, {}, f"this device has nothing to {order.kind.replace('_', ' ')} with")
    done = predictor.roll_back() if order.kind == "rollback" else predictor.adopt()
    return answered(order, {"versions": predictor.versions()}, "" if done else "no other version is here")


def evaluated(
    network: Network, held: Mapping[str, Held], windows: Labelled, present: tuple[str, ...]
) -> dict[str, Any]:
    """How the network, loaded with the blocks `held`, does on this device's own windows of the modalities `present`.

    The confusion matrix counts windows: row the label, column what the model says.
    """
    import torch

    spec = network.spec
    x, y = normalised(windows, present, held)
    where = next(network.parameters()).device
    confusion = np.zeros((spec.classes, spec.classes), np.int64)
    with torch.no_grad():
        for begin in range(0, len(y), BATCH):
            batch = {m: torch.from_numpy(v[begin : begin + BATCH]).to(where) for m, v in x.items()}
            said = network(batch).argmax(dim=1).cpu().numpy()
            np.add.at(confusion, (y[begin : begin + BATCH], said), 1)
    right = float(np.trace(confusion)) / max(1, len(y))
    versions = {b: held[b].manifest.version for b in (*present, SHARED)}
    return {"windows": len(y), "accuracy": right, "confusion": confusion.tolist(), "versions": versions}
