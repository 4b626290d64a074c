"""A checkpoint on disk: what it holds, reading it, writing it."""

from harness.checkpoints.layout import Checkpoint, TensorInfo, TensorSource, require_finite, role_and_layer
from harness.checkpoints.writer import CheckpointWriter, ShardPlan, plan_shards

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "ShardPlan",
    "TensorInfo",
    "TensorSource",
    "plan_shards",
    "require_finite",
    "role_and_layer",
]
