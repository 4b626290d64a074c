"""OTA: experts weighted, entry by entry, by the curvature that Adam has measured along their trajectory."""

from dataclasses import dataclass

from torch import Tensor

from methods.combination import masked_mean
from methods.interface import Curvature, CurvatureKind, Method, Parameter, needed_for, require


@dataclass(frozen=True, kw_only=True)
class Ota(Method):
    """Task vectors averaged with weights from Adam's second moments (OTA, without FFG): Σ wvᵖΔ / Σ wvᵖ.

    Optimization Trajectory Aware merging (Mahdavinia et al. 2025, "Harnessing Optimization Dynamics for
    Curvature-Informed Model Merging"): v is `exp_avg_sq`, bias-corrected, and the preconditioner is √v.
    """

    curvature: Curvature = "adam"
    """Where v comes from: Adam's second moments (adam; raw: without bias correction; compressed to row and column sums,
    rank: to low-rank factors, blocks: to 8 bits), squared gradients (fisher), or squared task vectors (delta), which
    need no file."""
    power: float = 0.5
    """p, the power of v that weights an entry; 0 is the plain average."""
    scale: float = 1.0
    """λ, the factor on the merged task vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("power", self.power >= 0, self.power, "must not be negative")

    def curvature_kind(self) -> CurvatureKind | None:
        return needed_for(self.curvature)

    def merge(self, parameter: Parameter) -> Tensor:
        strengths = parameter.curvature_of(self.curvature).pow(self.power)
        merged = masked_mean(parameter.task_vectors, None, self.expert_weights(parameter), strengths)
        return parameter.base + self.scale * merged
