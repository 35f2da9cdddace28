"""Inference in the configuration file, apart from the engine: a device that only senses need not load it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.config import FilePath, Section


class InferenceConfig(Section):
    """Inference on the device.

    kit         folder that `relief export` made; a link such as kits/current is followed at every start
    every       seconds between two predictions
    providers   tensorrt, cuda, cpu in order of preference; what is not there is passed over
    """

    kit: FilePath
    every: Annotated[float, Field(gt=0)] = 1.0
    providers: tuple[Literal["tensorrt", "cuda", "cpu"], ...] = ("cuda", "cpu")
