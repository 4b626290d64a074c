"""Curvature: second moments and Fisher information, on disk and from a training run."""

from typing import TYPE_CHECKING, Any

from harness.curvature.capture import save_second_moments, second_moments_of
from harness.curvature.compression import compress
from harness.curvature.delta import write_squared_task_vectors
from harness.curvature.fisher import empirical_fisher
from harness.curvature.second_moments import (
    SecondMoments,
    SecondMomentsMetadata,
    find_second_moments,
    write_second_moments,
)
from harness.curvature.source import CurvatureSource
from harness.curvature.umtam import Umtam
from harness.curvature.umtam_files import save_umtam

if TYPE_CHECKING:
    from harness.curvature.callback import SecondMomentsCallback

__all__ = [
    "CurvatureSource",
    "SecondMoments",
    "SecondMomentsCallback",
    "SecondMomentsMetadata",
    "Umtam",
    "compress",
    "empirical_fisher",
    "find_second_moments",
    "save_second_moments",
    "save_umtam",
    "second_moments_of",
    "write_second_moments",
    "write_squared_task_vectors",
]


def __getattr__(name: str) -> Any:
    """The callback when it is asked for: transformers takes seconds to import, and merging needs none of it."""
    if name == "SecondMomentsCallback":
        from harness.curvature.callback import SecondMomentsCallback

        return SecondMomentsCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
