"""TIES: trim, elect a sign, and average what agrees with it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from methods.combination import agreeing, masked_mean
from methods.interface import Method, Parameter, PerExpert, WholeModelSelection, require_share
from methods.selection import keep_by_cutoff, keep_per_tensor, magnitude


@dataclass(frozen=True, kw_only=True)
class Ties(Method):
    """Trim small edits, elect a sign per entry, average what agrees (Yadav et al. 2023, arXiv:2306.01708)."""

    density: PerExpert = 0.2
    """Share of each task vector's entries to keep, the largest in magnitude; one number or one per expert."""
    scope: Literal["model", "tensor"] = "model"
    """What a density is a share of: the whole model as in the paper, or each tensor on its own."""
    scale: float = 1.0
    """λ, the factor on the merged task vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("density", self.density)

    def selection(self) -> WholeModelSelection | None:
        return WholeModelSelection(density=self.density) if self.scope == "model" else None

    def score(self, parameter: Parameter) -> Tensor:
        return magnitude(parameter)

    def granularity(self) -> Literal["element", "matrix"]:
        return "element" if self.scope == "model" else "matrix"

    def merge(self, parameter: Parameter) -> Tensor:
        weights = self.expert_weights(parameter)
        scores = self.score(parameter)
        kept = (
            keep_by_cutoff(scores, parameter)
            if self.scope == "model"
            else keep_per_tensor(scores, parameter, self.density)
        )
        trimmed = parameter.task_vectors * kept
        return parameter.base + self.scale * masked_mean(trimmed, agreeing(trimmed, weights), weights)
