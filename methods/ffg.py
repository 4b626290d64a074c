"""FFG: graft the edits of one expert that matter under its curvature onto the base."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from methods.interface import Curvature, CurvatureKind, Method, Parameter, Selection, needed_for, require, require_share
from methods.selection import keep_by_cutoff, saliency


@dataclass(frozen=True, kw_only=True)
class Ffg(Method):
    """One expert's edits with the highest saliency v·Δ² grafted onto the base (Fast Fisher Grafting).

    From the same paper as OTA; the selection runs over the whole model of the expert.
    """

    expert: str | None = None
    """The expert to graft; may be left out where there is only one."""
    density: float = 0.4
    """Share of the expert's edits to keep, over the whole model; 0.4 is what the paper's released figure uses."""
    threshold: float | None = None
    """Keep edits of at least this saliency, in units of v·Δ², instead of a share."""
    curvature: Curvature = "adam"
    """Where v comes from: Adam's second moments (adam; raw: without bias correction; compressed to row and column sums,
    rank: to low-rank factors, blocks: to 8 bits), squared gradients (fisher), or squared task vectors (delta), which
    need no file."""
    scale: float = 1.0
    """λ, the factor on the grafted edits; 1 is the graft itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("density", self.density)
        require("threshold", self.threshold is None or self.threshold >= 0, self.threshold, "must not be negative")

    def experts_used(self, names: Sequence[str]) -> tuple[str, ...]:
        if self.expert is None and len(names) != 1:
            raise ValueError(f"FFG grafts one expert, say which: expert={'|'.join(names)}")
        if self.expert is not None and self.expert not in names:
            raise ValueError(f"expert={self.expert} is none of the experts: {', '.join(names)}")
        return (self.expert or names[0],)

    def curvature_kind(self) -> CurvatureKind | None:
        return needed_for(self.curvature)

    def selection(self) -> Selection:
        if self.threshold is not None:
            return Selection(threshold=self.threshold)
        return Selection(density=self.density)

    def score(self, parameter: Parameter) -> Tensor:
        return saliency(parameter, parameter.curvature_of(self.curvature))

    def score_depends_on(self) -> tuple[str, ...]:
        return ("curvature",)

    def merge(self, parameter: Parameter) -> Tensor:
        kept = keep_by_cutoff(self.score(parameter), parameter)
        grafted = kept * (self.expert_weights(parameter) * parameter.task_vectors)
        return parameter.base + self.scale * grafted[0]
