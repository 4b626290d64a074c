"""Curvature: second moments and Fisher information, on disk and from a training run."""

from harness.curvature.capture import second_moments_of
from harness.curvature.fisher import empirical_fisher
from harness.curvature.second_moments import (
    SecondMoments,
    SecondMomentsMetadata,
    compress,
    write_second_moments,
)
from harness.curvature.source import CurvatureSource

__all__ = [
    "CurvatureSource",
    "SecondMoments",
    "SecondMomentsMetadata",
    "compress",
    "empirical_fisher",
    "second_moments_of",
    "write_second_moments",
]
