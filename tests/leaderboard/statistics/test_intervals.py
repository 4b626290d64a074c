"""Intervals and the bootstrap against scipy, closed forms and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from harness.leaderboard.statistics import (
    Interval,
    mean_interval,
    retention,
    smallest_detectable_difference,
    weighted_mean_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "items"), [(0, 5), (5, 5), (1, 1), (3, 10), (200, 400), (399, 400)])
def test_wilson_interval_is_scipys(successes: int, items: int) -> None:
    expected = binomtest(successes, items).proportion_ci(0.95, method="wilson")
    interval = wilson_interval(successes / items, items)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_outcomes_of_zero_and_one_get_wilson_and_graded_ones_the_central_limit_theorem() -> None:
    binary = np.array([0.0, 1.0, 1.0, 1.0])
    assert mean_interval(binary) == wilson_interval(0.75, 4)
    graded = np.array([0.2, 0.4, 0.6, 0.8])  # standard deviation sqrt(0.2 / 3), standard error half of it
    half = 1.959964 * np.sqrt(0.2 / 3) / 2
    interval = mean_interval(graded)
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_an_interval_stays_within_the_scale_and_one_graded_item_says_little() -> None:
    interval = mean_interval(np.array([0.9, 1.0, 1.0, 0.1]))
    assert 0.0 <= interval.low < interval.high <= 1.0
    single = mean_interval(np.array([0.5]))
    assert single.high - single.low > 0.8


def test_the_average_of_normal_intervals_is_the_stratified_normal_interval() -> None:
    errors = np.array([0.02, 0.03, 0.06])
    means = [0.5, 0.6, 0.7]
    intervals = [Interval(m - 1.96 * e, m + 1.96 * e) for m, e in zip(means, errors, strict=True)]
    interval = weighted_mean_interval(means, intervals, [1 / 3] * 3)
    half = 1.96 * 0.07 / 3  # 2, 3, 6 and 7 are a Pythagorean quadruple
    assert (interval.low, interval.high) == pytest.approx((0.6 - half, 0.6 + half))


def test_the_average_over_one_capability_is_its_own_interval() -> None:
    own = wilson_interval(0.97, 60)
    interval = weighted_mean_interval([0.97], [own], [1.0])
    assert (interval.low, interval.high) == pytest.approx((own.low, own.high))


@pytest.mark.parametrize("probabilities", [(0.5, 0.7, 0.3, 0.6), (0.98, 0.97, 0.9, 0.95)])
def test_95_percent_intervals_of_an_average_cover_95_percent(probabilities: tuple[float, ...]) -> None:
    generator = np.random.default_rng(3)
    truth = float(np.mean(probabilities))
    covered = 0
    for _ in range(2000):
        means = [generator.binomial(100, p) / 100 for p in probabilities]
        intervals = [wilson_interval(mean, 100) for mean in means]
        covered += weighted_mean_interval(means, intervals, [0.25] * 4).contains(truth)
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize(("items", "disagreeing", "points"), [(1319, 0.20, 3.4), (541, 0.10, 3.8), (164, 0.2, 9.8)])
def test_smallest_detectable_difference_of_known_benchmarks(items: int, disagreeing: float, points: float) -> None:
    error = float(np.sqrt(disagreeing / items))  # paired, at a small difference
    assert 100 * smallest_detectable_difference(error) == pytest.approx(points, abs=0.06)


def test_smallest_detectable_difference_is_found_with_the_power_it_names() -> None:
    difference = smallest_detectable_difference(1.0)
    assert norm.sf(norm.ppf(0.975) - difference) == pytest.approx(0.8)


def test_retention_is_adjusted_for_chance() -> None:
    assert retention(np.array([0.45, 0.65, 0.25, 0.1]), np.array([0.65]), 0.25) == pytest.approx(
        [0.5, 1.0, 0.0, -0.375]
    )
