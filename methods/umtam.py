"""UMTAM's merge: edits selected by saliency, signs elected, experts' norms balanced."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.combination import agreeing, masked_mean
from methods.interface import (
    Curvature,
    CurvatureKind,
    Granularity,
    Method,
    Parameter,
    PerExpert,
    Selection,
    needed_for,
    require_share,
)
from methods.selection import keep_by_cutoff, saliency

_PIECE = 16_384
"""Fewer than 32,768 entries (at::internal::GRAIN_SIZE) are added up in one thread, whatever the number of threads."""


@dataclass(frozen=True, kw_only=True)
class Umtam(Method):
    """Select by saliency v·Δ², elect a sign per entry, give all experts one norm per tensor, average what agrees.

    After the public description of UMTAM (Moayedikia and Troncoso 2025, arXiv:2512.17109), whose equations could not
    be read: the formulas are ours. See docs/umtam.md.
    """

    density: PerExpert = 0.4
    """Share of an expert's edits to keep, over its whole model; one number or one per expert."""
    curvature: Curvature = "adam"
    """Where v comes from: Adam's second moments (adam; raw: without bias correction; compressed to row and column sums,
    rank: to low-rank factors, blocks: to 8 bits), squared gradients (fisher), or squared task vectors (delta), which
    need no file."""
    balance: bool = True
    """Scale what is left of each expert in a tensor to the experts' mean norm there."""
    scale: float = 1.0
    """λ, the factor on the merged task vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("density", self.density)

    def curvature_kind(self) -> CurvatureKind | None:
        return needed_for(self.curvature)

    def selection(self) -> Selection:
        return Selection(density=self.density)

    def granularity(self) -> Granularity:
        return "matrix" if self.balance else "element"

    def score(self, parameter: Parameter) -> Tensor:
        return saliency(parameter, parameter.curvature_of(self.curvature))

    def score_depends_on(self) -> tuple[str, ...]:
        return ("curvature",)

    def merge(self, parameter: Parameter) -> Tensor:
        weights = self.expert_weights(parameter)
        edits = keep_by_cutoff(self.score(parameter), parameter).mul_(parameter.task_vectors)
        agreed = agreeing(edits, weights)
        edits *= agreed
        if self.balance:
            _balance(edits, weights.flatten().tolist())
        return parameter.base + self.scale * masked_mean(edits, agreed, weights)


def _balance(edits: Tensor, weights: list[float]) -> None:
    """Give every expert's edit the weighted mean of their norms, in place; one of zero neither counts nor changes."""
    norms = [_norm(edit) for edit in edits]
    counted = [(weight, norm) for weight, norm in zip(weights, norms, strict=True) if norm > 0]
    total = math.fsum(weight for weight, _ in counted)
    if total == 0:
        return
    common = math.fsum(weight * norm for weight, norm in counted) / total
    for edit, norm in zip(edits, norms, strict=True):
        if norm > 0:
            edit *= common / norm


def _norm(values: Tensor) -> float:
    """√Σx² in fp64, the same for any number of threads."""
    squares = [piece.to(torch.float64).square().sum() for piece in values.flatten().split(_PIECE)]
    return math.sqrt(math.fsum(torch.stack(squares).tolist())) if squares else 0.0
