"""Scores of a task vector's entries, and the masks that keep the highest."""

import math
from decimal import Decimal

import torch
from torch import Tensor

from methods.interface import Cutoff, Parameter, PerExpert, per_expert


def magnitude(parameter: Parameter) -> Tensor:
    """|Δ|, `[experts, *shape]`: what TIES trims by (Yadav et al. 2023, arXiv:2306.01708, §4)."""
    return parameter.task_vectors.abs()


def saliency(parameter: Parameter, curvatures: Tensor) -> Tensor:
    """v·Δ², `[experts, *shape]`: twice the loss that undoing an edit would cost, to second order.

    The score of Fast Fisher Grafting; with the Hessian's diagonal for v it is optimal brain damage's
    (LeCun et al. 1989). Products below 1e-45 are zero in fp32, and an entry without saliency never survives.
    """
    return curvatures * parameter.task_vectors.square()


def entries_to_keep(density: float, entries: int) -> int:
    """⌈density·entries⌉, in decimal, since in binary ⌈0.07·100⌉ is 8."""
    return math.ceil(Decimal(repr(density)) * entries)


def keep_by_cutoff(scores: Tensor, parameter: Parameter) -> Tensor:
    """The entries that survive the whole-model selection: bool, `[experts, *shape]`."""
    assert parameter.cutoffs is not None, f"{parameter.name}: the method did not declare its selection"
    pairs = zip(parameter.cutoffs, scores.to(torch.float32), strict=True)
    masks = [cutoff.mask(score, parameter.name) for cutoff, score in pairs]
    return torch.stack(masks)


def keep_per_tensor(scores: Tensor, parameter: Parameter, density: PerExpert) -> Tensor:
    """The ⌈density·n⌉ highest scores of each expert's n entries in this tensor: bool, `[experts, *shape]`."""
    densities = per_expert(density, parameter.expert_names)
    return torch.stack([_tensor_mask(score, share) for score, share in zip(scores, densities, strict=True)])


def _tensor_mask(scores: Tensor, density: float) -> Tensor:
    if density == 1.0:
        return torch.ones_like(scores, dtype=torch.bool)
    kept = min(entries_to_keep(density, scores.numel()), int(scores.count_nonzero()))
    if kept == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.flatten().kthvalue(scores.numel() - kept + 1).values.item()
    tied_and_kept = kept - int((scores > threshold).sum())
    return Cutoff(threshold, {"": tied_and_kept}).mask(scores, "")
