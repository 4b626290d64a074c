"""OTA with FFG: each expert's edits selected by saliency, then averaged under curvature."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from methods.combination import Denominator, masked_mean
from methods.interface import (
    Curvature,
    CurvatureKind,
    Granularity,
    Method,
    Parameter,
    PerExpert,
    Selection,
    needed_for,
    require,
    require_share,
)
from methods.randomness import permutation
from methods.selection import keep_by_cutoff, magnitude, saliency


@dataclass(frozen=True, kw_only=True)
class OtaFfg(Method):
    """Edits selected by saliency v·Δ² (FFG), then averaged with weights √v (OTA): θ₀ + λ Σ wm√vΔ / Σ wm√v.

    "Harnessing Optimization Dynamics for Curvature-Informed Model Merging" (Mahdavinia et al. 2025). The last three
    options take the method apart: they make its controls.
    """

    density: PerExpert = 0.4
    """Share of an expert's edits to keep, over its whole model; one number or one per expert."""
    threshold: PerExpert | None = None
    """Keep edits of at least this saliency, in units of v·Δ², instead of a share; one number or one per expert."""
    curvature: Curvature = "adam"
    """Where v comes from: Adam's second moments (adam; raw: without bias correction; compressed to row and column sums,
    rank: to low-rank factors, blocks: to 8 bits), squared gradients (fisher), or squared task vectors (delta), which
    need no file."""
    power: float = 0.5
    """p, the power of v that weights an entry."""
    denominator: Denominator = "survivors"
    """Divide by the weights of the experts whose edit survives, or of all of them."""
    scale: float = 1.0
    """λ, the factor on the merged task vector."""
    score_by: Literal["saliency", "magnitude"] = "saliency"
    """What selects an edit: v·Δ², or |Δ| as a control."""
    weight_by: Literal["curvature", "uniform"] = "curvature"
    """What weights a survivor: vᵖ, or 1 as a control."""
    pairing: Literal["own", "shuffled", "rotated"] = "own"
    """Whose curvature an expert gets: its own, its own permuted within each tensor, or the next expert's."""
    seed: int = 0
    """Seed of the permutation that `pairing=shuffled` applies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("density", self.density)
        thresholds = self.threshold.values() if isinstance(self.threshold, dict) else [self.threshold or 0.0]
        require("threshold", all(value >= 0 for value in thresholds), self.threshold, "must not be negative")
        require("power", self.power >= 0, self.power, "must not be negative")

    def curvature_kind(self) -> CurvatureKind | None:
        unused = self.score_by == "magnitude" and self.weight_by == "uniform"
        return None if unused else needed_for(self.curvature)

    def selection(self) -> Selection:
        if self.threshold is not None:
            return Selection(threshold=self.threshold)
        return Selection(density=self.density)

    def granularity(self) -> Granularity:
        return "matrix" if self.pairing == "shuffled" else "element"

    def score(self, parameter: Parameter) -> Tensor:
        if self.score_by == "magnitude":
            return magnitude(parameter)
        return saliency(parameter, self._curvatures(parameter))

    def score_depends_on(self) -> tuple[str, ...]:
        return ("score_by", "curvature", "pairing", "seed")

    def scores_alone(self) -> bool:
        return self.pairing != "rotated"

    def merge(self, parameter: Parameter) -> Tensor:
        kept = keep_by_cutoff(self.score(parameter), parameter)
        strengths = self._curvatures(parameter).pow(self.power) if self.weight_by == "curvature" else None
        merged = masked_mean(parameter.task_vectors, kept, self.expert_weights(parameter), strengths, self.denominator)
        return parameter.base + self.scale * merged

    def _curvatures(self, parameter: Parameter) -> Tensor:
        """Each expert's curvature as the pairing has it: the same for mask and weights."""
        own = parameter.curvature_of(self.curvature)
        if self.pairing == "rotated":
            return own.roll(1, dims=0)
        if self.pairing == "shuffled":
            # One permutation for all experts: what is lost is where curvature sits, not how the experts' compare.
            return own.flatten(1)[:, permutation(parameter, self.seed)].view_as(own)
        return own
