"""Scores of a task vector's entries, and the masks that keep the highest."""

import math
from decimal import Decimal

from torch import Tensor

from methods.interface import Parameter, Rounding


def magnitude(parameter: Parameter) -> Tensor:
    """|Δ|, `[experts, *shape]`: what TIES trims by (Yadav et al. 2023, arXiv:2306.01708, §4)."""
    return parameter.task_vectors.abs()


def saliency(parameter: Parameter, curvatures: Tensor) -> Tensor:
    """v·Δ², `[experts, *shape]`: twice the loss that undoing an edit would cost, to second order.

    The score of Fast Fisher Grafting; with the Hessian's diagonal for v it is optimal brain damage's
    (LeCun et al. 1989). Products below 1e-45 are zero in fp32, and an entry without saliency never survives.
    """
    return curvatures * parameter.task_vectors.square()


def entries_to_keep(density: float, entries: int, rounding: Rounding = "up") -> int:
    """⌈density·entries⌉, in decimal, since in binary ⌈0.07·100⌉ is 8; or mergekit's count, see `Rounding`."""
    if rounding == "down":
        return max(1, int(density * entries)) if density > 0 else 0
    return math.ceil(Decimal(repr(density)) * entries)


def keep_by_cutoff(scores: Tensor, parameter: Parameter) -> Tensor:
    """The entries that survive the method's selection: 1 or 0, fp32, `[experts, *shape]`."""
    return parameter.surviving(scores)
