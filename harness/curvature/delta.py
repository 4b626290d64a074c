"""Squared task vectors, Δ² = (expert − base)², as a file: a stand-in for curvature that needs nothing but the weights.

Methods compute them on the fly (`curvature=delta`); the file is for other tools, and to compress or to compare them.
"""

import os
from pathlib import Path

import torch

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, TensorInfo
from harness.checkpoints.opening import Model, Source, open_checkpoint
from harness.curvature.second_moments import PIECE_ENTRIES, SecondMomentsMetadata
from harness.curvature.streaming import streamed_second_moments
from harness.errors import GraftbenchError

DELTA_FILE_NAME = "delta.safetensors"


def write_squared_task_vectors(base: Source, expert: Source, out: Path) -> int:
    """Write an expert's Δ² as a file of second moments, piece by piece; returns its number of parameters.

    Args:
        base: what the expert was fine-tuned from; see `open_checkpoint`.
        expert: the expert, whose parameters the file covers.
        out: the file to write.

    Raises:
        GraftbenchError: the models cannot be read or have not the same parameters, or `out` exists.
    """
    if os.path.lexists(out):
        raise GraftbenchError(f"{out} exists already; choose another out= or remove it")
    with open_checkpoint(base) as origin, open_checkpoint(expert) as model:
        parameters = _same_parameters(origin, model)
        metadata = SecondMomentsMetadata(kind="delta", base_digest=origin.weights_digest)
        scratch = torch.empty(PIECE_ENTRIES * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
        with streamed_second_moments(out, {info.name: info.shape for info in parameters}, metadata) as writer:
            for info in parameters:
                for start in range(0, info.entries, PIECE_ENTRIES):
                    stop = min(start + PIECE_ENTRIES, info.entries)
                    before, after = (
                        one.fetch(info.name, start, stop, scratch).to(torch.float32, copy=True)
                        for one in (origin, model)
                    )
                    writer.write_part(info.name, start, (after - before).square_())
    return len(parameters)


def _same_parameters(base: Model, expert: Model) -> list[TensorInfo]:
    problems = []
    for name, info in expert.tensors.items():
        if name not in base.tensors:
            problems.append(f"'{name}' is only in {expert.source}")
        elif base.tensors[name].shape != info.shape:
            there = list(base.tensors[name].shape)
            problems.append(f"'{name}' has shape {list(info.shape)} in {expert.source}, {there} in {base.source}")
    problems += [f"'{name}' is only in {base.source}" for name in base.tensors if name not in expert.tensors]
    if problems:
        more = f", and {len(problems) - 1} more do not fit" if len(problems) > 1 else ""
        raise GraftbenchError(
            f"{problems[0]}{more}: a task vector needs the same parameters in base and expert; merge with "
            "method.curvature=delta, which matches rows and tied heads first"
        )
    return list(expert.tensors.values())
