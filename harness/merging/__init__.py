"""A merge: planned from headers, streamed piece by piece, written to disk or handed to a live consumer."""

from harness.merging.cutoff_store import CutoffStore
from harness.merging.merge import MergeReport, merge_to_folder, room_for
from harness.merging.plan import Execution, MergePlan
from harness.merging.planning import plan_merge, resolve_devices
from harness.merging.request import MergeRequest
from harness.merging.stream import merged_parameters

__all__ = [
    "CutoffStore",
    "Execution",
    "MergePlan",
    "MergeReport",
    "MergeRequest",
    "merge_to_folder",
    "merged_parameters",
    "plan_merge",
    "resolve_devices",
    "room_for",
]
