"""DARE: drop edits at random, rescale the rest, and add them up."""

from dataclasses import dataclass

from torch import Tensor

from methods.combination import agreeing, masked_mean, sum_over_experts
from methods.interface import Method, Parameter, require
from methods.randomness import uniform


@dataclass(frozen=True, kw_only=True)
class Dare(Method):
    """Drop edits at random and rescale the rest by 1/(1−p) (Yu et al. 2024, arXiv:2311.03099), then sum them."""

    drop_rate: float = 0.9
    """p, the probability with which an entry of a task vector is dropped."""
    elect: bool = False
    """Instead of the sum: elect a sign per entry, without trimming, and average what agrees (DARE with TIES)."""
    scale: float = 0.3
    """λ, the factor on the merged task vector."""
    seed: int = 0
    """Seed of the random masks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("drop_rate", 0.0 <= self.drop_rate < 1.0, self.drop_rate, "must lie in 0..1, 1 excluded")

    def merge(self, parameter: Parameter) -> Tensor:
        weights = self.expert_weights(parameter)
        survives = uniform(parameter, self.seed).ge_(self.drop_rate)
        rescaled = survives * (parameter.task_vectors / (1.0 - self.drop_rate))
        if self.elect:
            merged = masked_mean(rescaled, agreeing(rescaled, weights), weights)
        else:
            merged = sum_over_experts(rescaled, weights)
        return parameter.base + self.scale * merged
