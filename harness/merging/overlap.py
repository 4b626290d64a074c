"""How much of what FFG selects under full second moments it still selects once they are compressed."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from harness.checkpoints.opening import Source
from harness.curvature.second_moments import SecondMoments
from harness.merging.plan import Execution
from harness.merging.planning import plan_merge
from harness.merging.stream import merged_parameters
from methods.ffg import Ffg
from methods.interface import Parameter
from methods.selection import keep_by_cutoff

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class MaskOverlap:
    """Two masks of one density over the same model."""

    density: float
    both: int
    """Entries that both keep."""
    either: int
    """Entries that one of them keeps."""

    @property
    def intersection_over_union(self) -> float:
        """From 0 to 1; two masks that keep nothing are the same."""
        return self.both / self.either if self.either else 1.0


def mask_overlaps(
    base: Source,
    expert: Source,
    first: Path,
    second: Path,
    densities: Sequence[float] = DENSITIES,
    execution: Execution | None = None,
) -> list[MaskOverlap]:
    """Compare FFG's masks of an expert under two files of curvature, at each density.

    Masks are those of a merge, exact over the whole model, and two tensors of them are in memory at a time. Everything
    is read twice or more for each density.

    Args:
        base: the base model, see `open_checkpoint`.
        expert: the expert, likewise.
        first: second moments or Fisher information of the expert; see `SecondMoments`.
        second: the same, compressed or from another source.
        densities: shares of the expert's edits that are kept.
        execution: how merges are run; see `plan_merge`.

    Raises:
        GraftbenchError: models and curvature do not fit, or cannot be read.
    """
    found = []
    for density in densities:
        both = either = 0
        masks = [_masks(base, expert, path, density, execution) for path in (first, second)]
        with closing(masks[0]), closing(masks[1]):
            for one, other in zip(*masks, strict=True):
                both += int((one & other).sum())
                either += int((one | other).sum())
        found.append(MaskOverlap(density, both, either))
    return found


@dataclass(frozen=True, kw_only=True)
class _Mask(Ffg):
    """FFG that puts 1 where it keeps an edit, 0 elsewhere, in place of the merged value."""

    def merge(self, parameter: Parameter) -> Tensor:
        return keep_by_cutoff(self.score(parameter), parameter)[0]


def _masks(
    base: Source, expert: Source, curvature: Path, density: float, execution: Execution | None
) -> Generator[Tensor, None, None]:
    """The mask of every parameter in turn, bool."""
    with SecondMoments(curvature) as moments:
        method = _Mask(density=density, curvature="fisher" if moments.metadata.kind == "fisher" else "adam")
    with plan_merge("ffg", method, base, {"expert": expert}, {"expert": curvature}, "float32", execution) as plan:
        names = {info.name for info in plan.parameters}
        for name, mask in merged_parameters(plan):
            if name in names:
                yield mask > 0
