"""What a merge needs besides time: files beside the experts' weights, and what they are made from."""

from math import prod
from typing import Any

from harness.curvature.blocks import blocks_of
from harness.curvature.low_rank import DEFAULT_RANK
from harness.curvature.source import FORMS
from harness.curvature.stored import applies
from harness.merging.plan import MergePlan
from methods.interface import CurvatureKind

DATA_NEEDED: dict[CurvatureKind | None, str] = {
    None: "none",
    "adam": "second moments",
    "raw": "second moments",
    "compressed": "second moments",
    "rank": "second moments",
    "blocks": "second moments",
    "fisher": "labelled examples",
}
"""By the kind of curvature; second moments come out of the training that made the expert."""

_FP32 = 4
_RANGE = 8
"""Bytes of a block's two integers."""


def needs(plan: MergePlan) -> dict[str, Any]:
    """A record's `extra_bytes_per_expert` and `data_needed`: of the method, whatever form the files here have."""
    kind = plan.method.curvature_kind()
    held = 0 if kind is None else sum(_bytes(info.shape, kind) for info in plan.parameters)
    return {"extra_bytes_per_expert": held, "data_needed": DATA_NEEDED[kind]}


def _bytes(shape: tuple[int, ...], kind: CurvatureKind) -> int:
    """What one parameter's curvature takes in a file."""
    form, entries = FORMS.get(kind), prod(shape)
    if form is None or not applies(form, shape):
        return _FP32 * entries
    if form == "blocks":
        return entries + _RANGE * blocks_of(entries)
    return _FP32 * sum(shape) * (DEFAULT_RANK if form == "rank" else 1)
