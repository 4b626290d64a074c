"""What repeats say that items cannot: other training seeds, other masks."""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from harness.leaderboard.statistics.intervals import CONFIDENCE, Interval


def mean_of_replicates(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, Interval | None, float | None]:
    """The mean of one value a seed, its interval, and the p-value of a mean of 0: Student's t with k - 1 degrees of
    freedom.

    For differences between two methods, paired by seed. One seed has no interval. Where all seeds give the same
    value, the interval is that value, and p is 1 at 0 and 0 elsewhere.

    Source: Student 1908, Biometrika 6:1-25; over training seeds of language models: Dodge et al. 2020, arXiv
    2002.06305; Reimers and Gurevych 2017, EMNLP, 338-348.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    freedom = len(values) - 1
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    if error <= 1e-12 * max(1.0, abs(mean)):
        return mean, Interval(mean, mean), float(abs(mean) < 1e-9)
    return mean, Interval(mean - half, mean + half), float(2 * stdtr(freedom, -abs(mean) / error))
