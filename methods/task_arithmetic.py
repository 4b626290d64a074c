"""Task arithmetic: the base plus a scaled sum of task vectors."""

from dataclasses import dataclass

from torch import Tensor

from methods.combination import sum_over_experts
from methods.interface import Method, Parameter


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Method):
    """Base plus the scaled sum of task vectors (Ilharco et al. 2023, arXiv:2212.04089): θ₀ + λ Σ wₜΔₜ."""

    scale: float = 0.3
    """λ, the factor on the summed task vectors; 0.3 follows the paper's recommendation for several tasks."""

    def merge(self, parameter: Parameter) -> Tensor:
        merged = sum_over_experts(parameter.task_vectors, self.expert_weights(parameter))
        return parameter.base + self.scale * merged
