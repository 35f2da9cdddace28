"""A model of one's own: windows go into the fusion layer as they are, without convolutions."""

from __future__ import annotations

from models.spec import InputSpec, ModelSpec
from sensors.recording import DataSet


def flat(dataset: DataSet) -> ModelSpec:
    """Flattened windows, a fusion layer of 24: small enough for a microcontroller."""
    samples = round(dataset.window_s * dataset.rate_hz)
    inputs = tuple(InputSpec(m.name, len(m.channels), samples) for m in dataset.modalities)
    return ModelSpec(inputs=inputs, classes=len(dataset.activities), widths=(), fusion=24)
