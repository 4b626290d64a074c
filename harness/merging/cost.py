"""What a merge needs besides time: files beside the experts' weights, and what they are made from."""

from typing import Any

from harness.merging.plan import MergePlan

DATA_NEEDED = {None: "none", "fisher": "labelled examples"} | dict.fromkeys(
    ("adam", "raw", "compressed"), "second moments"
)
"""By the kind of curvature; second moments come out of the training that made the expert."""

_FP32 = 4


def needs(plan: MergePlan) -> dict[str, Any]:
    """A record's `extra_bytes_per_expert` and `data_needed`: of the method, whatever form the files here have."""
    kind = plan.method.curvature_kind()
    return {"extra_bytes_per_expert": _FP32 * _numbers(plan, kind), "data_needed": DATA_NEEDED[kind]}


def _numbers(plan: MergePlan, kind: str | None) -> int:
    """Numbers of curvature for an expert: one an entry; or of a matrix one a row and one a column."""
    if kind is None:
        return 0
    compressed = kind == "compressed"
    return sum(sum(info.shape) if compressed and len(info.shape) == 2 else info.entries for info in plan.parameters)
