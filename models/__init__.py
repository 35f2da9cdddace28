"""What is learned: encoders, the fusion layer, the block partition, costs. Exported here: what needs no torch."""

from models.cost import BlockCost, block_costs, round_flops
from models.local import Local, batches, effective_steps, kept
from models.partition import Partition, TensorSpec, Vector, initial, partition
from models.spec import SHARED, BPolicy, InputSpec, Mode, ModelSpec

__all__ = [
    "SHARED",
    "BPolicy",
    "BlockCost",
    "InputSpec",
    "Local",
    "Mode",
    "ModelSpec",
    "Partition",
    "TensorSpec",
    "Vector",
    "batches",
    "block_costs",
    "effective_steps",
    "initial",
    "kept",
    "partition",
    "round_flops",
]
