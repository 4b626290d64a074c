"""Curvature: second moments and Fisher information, on disk and from a training run."""

from harness.curvature.capture import second_moments_of
from harness.curvature.compression import compress
from harness.curvature.fisher import empirical_fisher
from harness.curvature.second_moments import (
    SecondMoments,
    SecondMomentsMetadata,
    find_second_moments,
    write_second_moments,
)
from harness.curvature.source import CurvatureSource

__all__ = [
    "CurvatureSource",
    "SecondMoments",
    "SecondMomentsMetadata",
    "compress",
    "empirical_fisher",
    "find_second_moments",
    "second_moments_of",
    "write_second_moments",
]
