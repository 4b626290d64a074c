"""TIES: trim, elect a sign, and average what agrees with it."""

from dataclasses import dataclass

from torch import Tensor

from methods.combination import agreeing, masked_mean
from methods.interface import Method, Parameter, PerExpert, Scope, Selection, require_share
from methods.selection import keep_by_cutoff, magnitude


@dataclass(frozen=True, kw_only=True)
class Ties(Method):
    """Trim small edits, elect a sign per entry, average what agrees (Yadav et al. 2023, arXiv:2306.01708)."""

    density: PerExpert = 0.2
    """Share of each task vector's entries to keep, the largest in magnitude; one number or one per expert."""
    scope: Scope = "model"
    """What a density is a share of: the whole model as in the paper, or each tensor on its own."""
    scale: float = 1.0
    """λ, the factor on the merged task vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("density", self.density)

    def selection(self) -> Selection:
        return Selection(density=self.density, scope=self.scope)

    def score(self, parameter: Parameter) -> Tensor:
        return magnitude(parameter)

    def score_depends_on(self) -> tuple[str, ...]:
        return ()

    def merge(self, parameter: Parameter) -> Tensor:
        weights = self.expert_weights(parameter)
        trimmed = keep_by_cutoff(self.score(parameter), parameter).mul_(parameter.task_vectors)
        return parameter.base + self.scale * masked_mean(trimmed, agreeing(trimmed, weights), weights)
