"""Experts into one: signs are elected, values are averaged, and sums run over experts in their order."""

from typing import Literal

import torch
from torch import Tensor

Denominator = Literal["survivors", "all"]


def sum_over_experts(values: Tensor, factors: Tensor | None = None) -> Tensor:
    """Σ x, or Σ f·x, of `[experts, *shape]` over experts, one after the other: rounding depends on nothing else.

    Args:
        values: x, `[experts, *shape]`.
        factors: f, `[experts, *shape]` or one per expert, `[experts, 1, …]`; None for 1.
    """
    if factors is None:
        total = values[0].clone()
        for value in values[1:]:
            total += value
        return total
    total = values[0] * factors[0]
    for value, factor in zip(values[1:], factors[1:], strict=True):
        total += value * factor  # rounded twice; a fused multiplication and addition rounds as the device likes
    return total


def agreeing(values: Tensor, weights: Tensor) -> Tensor:
    """The entries whose sign is the one that the weighted sum over experts elects: 1 or 0, fp32, `[experts, *shape]`.

    A sum of zero elects no sign, so that no entry agrees and the base value stays (TIES, arXiv:2306.01708, step 2:
    γ = sgn Σ). The authors' code gives such entries the majority sign of the whole model instead.
    """
    elected = sum_over_experts(values, weights).sign_()
    return (values * elected).gt_(0.0)


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
        mask: m, which entries take part, 1 or 0 or bool, `[experts, *shape]`; None for all.
        weights: w ≥ 0, one per expert, `[experts, 1, …]`.
        strengths: s ≥ 0, `[experts, *shape]`; None for 1 everywhere.
        denominator: `survivors` divides by the sum above, `all` by Σ w·s, as if nothing were masked.

    Where every survivor's strength is zero they are averaged by their weights alone; where there are no survivors the
    result is zero. Neither is decided by an ε: strengths are divided by their largest over the experts, so that their
    own scale (second moments of 1e-20, say) cancels before anything is rounded.
    """
    if mask is not None:
        mask = mask.to(values.dtype)
    if strengths is not None:
        weights = _relative(strengths if mask is None or denominator == "all" else strengths * mask, weights)
    kept = weights if mask is None else mask * weights
    total = sum_over_experts(kept if denominator == "survivors" else weights)
    return sum_over_experts(values, kept).div_(total + _is_zero(total))


def _relative(strengths: Tensor, weights: Tensor) -> Tensor:
    """w·s as a share of its largest over the experts; w itself where all of them are zero."""
    weighted = weights * strengths
    largest = weighted.amax(dim=0, keepdim=True)
    nothing = _is_zero(largest)
    return weighted.add_(nothing * weights).div_(largest + nothing)


def _is_zero(values: Tensor) -> Tensor:
    return torch.eq(values, 0.0, out=torch.empty_like(values))
