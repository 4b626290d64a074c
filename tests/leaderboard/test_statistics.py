"""Intervals and the bootstrap against scipy, closed forms and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from harness.leaderboard.statistics import (
    FEWEST_DIFFERING_ITEMS,
    FloatArray,
    Interval,
    bootstrap_means,
    indistinguishable,
    mean_interval,
    paired_standard_error,
    percentile_interval,
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


def correlated_outcomes(items: int, generator: np.random.Generator) -> FloatArray:
    """Two models that share the difficulty of the items, shape (items, 2)."""
    difficulty = generator.random(items)
    noise = generator.random((items, 2))
    return (0.7 * difficulty[:, None] + 0.3 * noise < np.array([0.6, 0.55])).astype(float)


def test_bootstrap_of_a_paired_difference_has_the_analytic_mean_and_standard_error() -> None:
    outcomes = correlated_outcomes(500, np.random.default_rng(11))
    draws = bootstrap_means("task", outcomes, draws=20_000)
    difference = outcomes[:, 0] - outcomes[:, 1]
    bootstrapped = draws[:, 0] - draws[:, 1]
    analytic = paired_standard_error({"task": difference}, {"task": 1.0})
    assert analytic == pytest.approx(np.sqrt(difference.var(ddof=1) / 500))
    assert bootstrapped.std() == pytest.approx(analytic, rel=0.03)
    assert bootstrapped.mean() == pytest.approx(difference.mean(), abs=4 * analytic / np.sqrt(20_000))
    unpaired = np.sqrt(outcomes.var(axis=0, ddof=1).sum() / 500)
    assert analytic < 0.8 * unpaired


def test_paired_standard_errors_of_tasks_add_in_quadrature_by_weight() -> None:
    # One difference in four, and two in four of either sign: variances 1/4 and 2/3, over 4 items each.
    differences = {"math": np.array([1.0, 0, 0, 0]), "code": np.array([1.0, -1, 0, 0])}
    error = paired_standard_error(differences, {"math": 0.6, "code": 0.4})
    assert error**2 == pytest.approx(0.36 / 16 + 0.16 / 6)


def test_bootstrap_counts_are_multinomial() -> None:
    items = 40
    draws = bootstrap_means("task", np.eye(items), draws=20_000) * items  # row i counts item i
    assert np.array_equal(draws.round(), draws)
    assert np.all(draws.sum(axis=1) == items)
    assert draws.mean(axis=0) == pytest.approx(np.ones(items), abs=0.04)
    assert draws.var(axis=0).mean() == pytest.approx(1 - 1 / items, rel=0.02)
    covariance = np.cov(draws[:, 0], draws[:, 1])[0, 1]
    assert covariance == pytest.approx(-1 / items, abs=0.03)


def test_draws_depend_on_the_tasks_name_and_the_seed_only() -> None:
    outcomes = correlated_outcomes(50, np.random.default_rng(1))
    draws = bootstrap_means("math", outcomes, draws=100)
    assert np.array_equal(draws, bootstrap_means("math", outcomes, draws=100))
    assert np.array_equal(draws[:, :1], bootstrap_means("math", outcomes[:, :1], draws=100))
    assert not np.array_equal(draws, bootstrap_means("code", outcomes, draws=100))
    assert not np.array_equal(draws, bootstrap_means("math", outcomes, draws=100, seed=1))


def test_memory_bound_does_not_shorten_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.leaderboard.statistics._INDICES_AT_ONCE", 700)
    means = bootstrap_means("task", np.ones((50, 1)), draws=101)
    assert np.array_equal(means, np.ones((101, 1)))


def test_paired_bootstrap_rejects_about_5_percent_when_two_models_are_equally_good() -> None:
    generator = np.random.default_rng(5)
    rejected = 0
    for replicate in range(400):
        items = 150
        difficulty = generator.random((items, 1))
        outcomes = (0.6 * difficulty + 0.4 * generator.random((items, 2)) < 0.6).astype(float)
        draws = bootstrap_means(f"task {replicate}", outcomes, draws=1000)
        interval = percentile_interval(draws[:, 0] - draws[:, 1])
        differing = int((outcomes[:, 0] != outcomes[:, 1]).sum())
        rejected += not indistinguishable(interval, differing)
    assert 0.02 <= rejected / 400 <= 0.085  # 5 % and three standard errors


def test_too_few_differing_items_never_tell_rows_apart() -> None:
    clear = Interval(0.1, 0.2)
    assert indistinguishable(clear, FEWEST_DIFFERING_ITEMS - 1)
    assert not indistinguishable(clear, FEWEST_DIFFERING_ITEMS)
    for differing in range(1, 12):  # the sign test, all differences on one side
        significant = binomtest(differing, differing).pvalue < 0.05
        assert significant == (not indistinguishable(clear, differing))


def test_an_interval_that_touches_zero_contains_it() -> None:
    assert indistinguishable(Interval(0.0, 0.1), 100)
    assert indistinguishable(Interval(1e-17, 0.1), 100)
    assert not indistinguishable(Interval(0.001, 0.1), 100)
    assert not indistinguishable(Interval(-0.1, -0.001), 100)


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
