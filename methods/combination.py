"""Experts into one: signs are elected, values are averaged, and sums run over experts in their order."""

from typing import Literal

import torch
from torch import Tensor

Denominator = Literal["survivors", "all"]


def sum_over_experts(values: Tensor) -> Tensor:
    """Sum of `[experts, *shape]` over experts, one after the other, so that its rounding depends on nothing else."""
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total


def agreeing(values: Tensor, weights: Tensor) -> Tensor:
    """The entries whose sign is the one that the weighted sum over experts elects: bool, `[experts, *shape]`.

    A sum of zero elects no sign, so that no entry agrees and the base value stays (TIES, arXiv:2306.01708, step 2:
    γ = sgn Σ). The authors' code gives such entries the majority sign of the whole model instead.
    """
    elected = sum_over_experts(values * weights).sign()
    return (values.sign() == elected) & (elected != 0)


def masked_mean(
    values: Tensor,
    mask: Tensor | None,
    weights: Tensor,
    strengths: Tensor | None = None,
    denominator: Denominator = "survivors",
) -> Tensor:
    """Σ w·m·s·x / Σ w·m·s over experts, `[*shape]`.

    Args:
        values: x, `[experts, *shape]`.
        mask: m, which entries take part, bool, `[experts, *shape]`; None for all.
        weights: w ≥ 0, one per expert, `[experts, 1, …]`.
        strengths: s ≥ 0, `[experts, *shape]`; None for 1 everywhere.
        denominator: `survivors` divides by the sum above, `all` by Σ w·s, as if nothing were masked.

    Where every survivor's strength is zero they are averaged by their weights alone; where there are no survivors the
    result is zero. Neither is decided by an ε: strengths are divided by their largest over the experts, so that their
    own scale (second moments of 1e-20, say) cancels before anything is rounded.
    """
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    mean, _ = _mean(values, mask, weights.expand_as(values), denominator)
    if strengths is None:
        return mean
    largest = strengths.amax(dim=0, keepdim=True)
    relative = torch.where(largest > 0, strengths / largest, 0.0)
    curved, defined = _mean(values, mask, weights * relative, denominator)
    return torch.where(defined, curved, mean)


def _mean(values: Tensor, mask: Tensor, strengths: Tensor, denominator: Denominator) -> tuple[Tensor, Tensor]:
    """Σ m·s·x / Σ s, zero where the denominator is; and where it is not."""
    kept = torch.where(mask, strengths, 0.0)
    total = sum_over_experts(kept if denominator == "survivors" else strengths)
    defined = total > 0
    return torch.where(defined, sum_over_experts(kept * values) / total, 0.0), defined
