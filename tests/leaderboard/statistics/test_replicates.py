"""Seeds: Student's t against scipy."""

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp, ttest_rel

from harness.leaderboard.statistics import mean_of_replicates


def test_differences_paired_by_seed_are_students() -> None:
    own, other = [61.2, 60.1, 62.4], [59.0, 58.8, 60.3]
    mean, interval, p_value = mean_of_replicates([a - b for a, b in zip(own, other, strict=True)])
    expected = ttest_rel(own, other)
    low, high = expected.confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(own) - np.mean(other))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert p_value == pytest.approx(expected.pvalue)
    assert interval.half_width == pytest.approx(t.ppf(0.975, 2) * np.std(np.subtract(own, other), ddof=1) / np.sqrt(3))


def test_one_seed_has_no_interval_and_equal_seeds_have_no_width() -> None:
    assert mean_of_replicates([3.0]) == (3.0, None, None)
    mean, interval, p_value = mean_of_replicates([0.0, 0.0, 0.0])
    assert (mean, p_value) == (0.0, 1.0)
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, 0.0)
    assert mean_of_replicates([2.0, 2.0])[2] == 0.0


def test_intervals_over_three_seeds_cover_95_percent() -> None:
    """4,000 sets of seeds around a true difference of 1."""
    draws = np.random.default_rng(1).normal(1.0, 2.0, size=(4000, 3))
    made = [mean_of_replicates(list(values)) for values in draws]
    assert 0.93 <= np.mean([interval is not None and interval.contains(1.0) for _, interval, _ in made]) <= 0.97
    assert [p for _, _, p in made[:50]] == pytest.approx(list(ttest_1samp(draws[:50], 0.0, axis=1).pvalue))
