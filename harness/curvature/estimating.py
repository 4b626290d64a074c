"""Curvature of an expert without its optimizer, written to the file that methods read."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from harness.checkpoints import Checkpoint
from harness.checkpoints.layout import TensorInfo
from harness.checkpoints.opening import open_checkpoint
from harness.curvature.batched_fisher import LabelSource, batched_fisher
from harness.curvature.examples import read_examples
from harness.curvature.second_moments import SecondMomentsMetadata, write_second_moments
from harness.errors import GraftbenchError

EstimateKind = Literal["fisher", "delta"]


def estimate_fisher(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    base: str | Path | None = None,
    labels: LabelSource = "data",
    batch_size: int = 8,
    max_length: int = 1024,
    limit: int | None = None,
    device: torch.device | None = None,
    seed: int = 0,
) -> tuple[int, int]:
    """Write the diagonal of a model's Fisher information; returns the numbers of parameters and of examples.

    Args:
        model: the expert, a Hugging Face folder or hub name.
        data: examples, see `read_examples`.
        out: the file to write.
        base: the model that training began with, whose digest the file shall hold.
        labels: see `batched_fisher`.
        batch_size: examples at a time.
        max_length: tokens after which an example is cut off.
        limit: take so many examples, drawn at random.
        device: where gradients are computed; None is the CPU.
        seed: of both kinds of draws.

    Raises:
        GraftbenchError: model or data cannot be read, or do not fit; or `out` exists.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if os.path.lexists(out):
        raise GraftbenchError(f"{out} exists already; choose another out= or remove it")
    with Checkpoint(model) as checkpoint:
        folder, stored = checkpoint.folder, dict(checkpoint.tensors)
    examples = read_examples(data, AutoTokenizer.from_pretrained(folder), max_length, limit, seed)
    digest = None
    if base is not None:
        with open_checkpoint(base) as origin:
            digest = origin.weights_digest
    network: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # fused attention has no rule for batches of single gradients
    )
    network.to(device or torch.device("cpu"))
    _require_same_names({name: tuple(each.shape) for name, each in network.named_parameters()}, stored, model)
    fisher = batched_fisher(network, examples, batch_size, labels, seed)
    from_where = "the data's answers" if labels == "data" else "answers drawn from the model"
    metadata = SecondMomentsMetadata(
        kind="fisher", base_digest=digest, estimate=f"{len(examples)} examples, {from_where}"
    )
    write_second_moments(out, fisher, metadata)
    return len(fisher), len(examples)


def _require_same_names(
    parameters: dict[str, tuple[int, ...]], stored: dict[str, TensorInfo], model: str | Path
) -> None:
    """Files of curvature go by the names of the checkpoint's tensors, which some architectures rename on loading."""
    strange = [name for name, shape in parameters.items() if name not in stored or stored[name].shape != shape]
    if strange:
        raise GraftbenchError(
            f"{model}: transformers trains '{strange[0]}' (and {len(strange) - 1} more), which the checkpoint does not "
            "hold under that name and shape; models that are rearranged on loading cannot be merged by such a file"
        )
