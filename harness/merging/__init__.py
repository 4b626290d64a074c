"""A merge: planned from headers, streamed parameter by parameter, written to disk."""

from harness.merging.merge import MergeReport, merge_to_folder
from harness.merging.plan import MergePlan, plan_merge
from harness.merging.stream import merged_parameters

__all__ = ["MergePlan", "MergeReport", "merge_to_folder", "merged_parameters", "plan_merge"]
