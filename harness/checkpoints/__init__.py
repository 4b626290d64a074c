"""A checkpoint on disk: what it holds, reading it, writing it."""

from harness.checkpoints.layout import Checkpoint, TensorInfo, role_and_layer
from harness.checkpoints.writer import CheckpointWriter

__all__ = ["Checkpoint", "CheckpointWriter", "TensorInfo", "role_and_layer"]
