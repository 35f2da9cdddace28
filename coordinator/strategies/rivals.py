"""RELIEF's rivals and further ablations, by which `coordinator.strategies` knows them."""

from __future__ import annotations

from coordinator.strategies.ablations import CohortStepsSamples, ReliefMomentumSamples, ReliefNorm, ReliefRandom
from coordinator.strategies.base import Strategy
from coordinator.strategies.fedbuff import FedBuff
from coordinator.strategies.fedprox import FedProx
from coordinator.strategies.flism import FLISM
from coordinator.strategies.harmony import Harmony
from coordinator.strategies.heterofl import FedRolex, HeteroFL
from coordinator.strategies.lora_rivals import FediLoRA, FedIT, FedSALoRA, FFALoRA
from coordinator.strategies.mfedmc import MFedMC
from coordinator.strategies.momentum import CohortStepsMomentum, FedAvgM, FedAvgMMaskedCached, ReliefMomentum
from coordinator.strategies.partial import FedEL, TimelyFL

RIVALS: tuple[type[Strategy], ...] = (
    ReliefMomentum,
    CohortStepsMomentum,
    CohortStepsSamples,
    ReliefMomentumSamples,
    ReliefNorm,
    ReliefRandom,
    FedAvgM,
    FedAvgMMaskedCached,
    FedProx,
    FedBuff,
    HeteroFL,
    FedRolex,
    TimelyFL,
    FedEL,
    Harmony,
    FLISM,
    MFedMC,
    FedIT,
    FedSALoRA,
    FediLoRA,
    FFALoRA,
)
