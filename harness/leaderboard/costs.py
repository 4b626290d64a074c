"""What a row costs: merging, memory, files, data, tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.results import Record

DATA_OF_CURVATURE = {"adam": "second moments", "compressed": "second moments", "fisher": "labelled examples"}
"""What a kind of curvature is made from, besides the checkpoints."""


@dataclass(frozen=True)
class Costs:
    """Each is None where the records do not tell (they are older, or nothing was merged)."""

    merge_seconds: float | None
    """Wall time of the merge, the search for cutoffs included."""
    peak_memory_bytes: int | None
    """Largest memory of the merging process and its workers together, interpreter included, shared pages once."""
    extra_bytes_per_expert: int | None
    """Files that an expert must come with besides its weights: second moments or Fisher information."""
    data_needed: str | None
    """none, second moments, or labelled examples."""
    tuning_trials: int | None
    """Settings that were evaluated to choose the hyper-parameters; 0 where none were."""
    tuning_seconds: float | None
    """Wall time of all of them; 0 where none were."""


def costs_of(records: Sequence[Record], selection: Mapping[str, Any]) -> Costs:
    """The costs of one row: of several records the median of seconds, and the largest memory and files.

    Args:
        records: of the row.
        selection: how its hyper-parameters were chosen.
    """
    seconds = [record.timings["merge"] for record in records if "merge" in record.timings]
    memory = [record.costs["peak_memory_bytes"] for record in records if "peak_memory_bytes" in record.costs]
    extra = [record.costs["extra_bytes_per_expert"] for record in records if "extra_bytes_per_expert" in record.costs]
    tuned = selection.get("how") == "tuned"
    merged = records[0].role in ("method", "control")
    untuned = 0 if merged and selection.get("how") in ("default", "published") else None
    return Costs(
        merge_seconds=median(seconds) if seconds else None,
        peak_memory_bytes=max(memory, default=None),
        extra_bytes_per_expert=max(extra, default=None),
        data_needed=_data_needed(records[0]),
        tuning_trials=selection.get("trials") if tuned else untuned,
        tuning_seconds=selection.get("seconds") if tuned else untuned,
    )


def _data_needed(record: Record) -> str | None:
    """As recorded; of older records, from the kind of curvature that their recipe names."""
    if "data_needed" in record.costs:
        return str(record.costs["data_needed"])
    if record.role not in ("method", "control") or "curvature" not in record.recipe:
        return None
    if record.recipe["curvature"] is None:
        return "none"
    values: dict[str, Any] = record.recipe.get("hyperparameters") or {}
    return DATA_OF_CURVATURE.get(str(values.get("curvature")))
