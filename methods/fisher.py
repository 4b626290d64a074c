"""Fisher averaging: experts weighted by their diagonal Fisher information."""

from dataclasses import dataclass

from torch import Tensor

from methods.combination import masked_mean
from methods.interface import Curvature, CurvatureKind, Method, Parameter, needed_for


@dataclass(frozen=True, kw_only=True)
class Fisher(Method):
    """Average weighted by diagonal Fisher information (Matena and Raffel 2022, arXiv:2111.09832): Σ wFθ / Σ wF."""

    curvature: Curvature = "fisher"
    """Where the Fisher information comes from: squared gradients; or a stand-in: Adam's second moments (adam, raw,
    compressed, rank, blocks) or squared task vectors (delta)."""
    scale: float = 1.0
    """λ, the factor on the merged task vector; 1 is Fisher averaging itself."""

    def curvature_kind(self) -> CurvatureKind | None:
        return needed_for(self.curvature)

    def merge(self, parameter: Parameter) -> Tensor:
        # Weights that sum to one make the average of experts the base plus the average of task vectors.
        merged = masked_mean(
            parameter.task_vectors, None, self.expert_weights(parameter), parameter.curvature_of(self.curvature)
        )
        return parameter.base + self.scale * merged
