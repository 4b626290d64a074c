"""The paired bootstrap and rank intervals against closed forms."""

import numpy as np
import pytest

from harness.leaderboard.statistics import FloatArray, bootstrap_means, rank_intervals, standard_errors
from tests.leaderboard.statistics.conftest import MakeTasks


def correlated_outcomes(items: int, generator: np.random.Generator) -> FloatArray:
    """Two models that share the difficulty of the items, shape (items, 2)."""
    difficulty = generator.random(items)
    noise = generator.random((items, 2))
    return (0.7 * difficulty[:, None] + 0.3 * noise < np.array([0.6, 0.55])).astype(float)


def test_a_paired_difference_has_the_analytic_mean_and_standard_error(make_tasks: MakeTasks) -> None:
    outcomes = correlated_outcomes(500, np.random.default_rng(11))
    tasks, design = make_tasks({"task": outcomes})
    draws = bootstrap_means(tasks, design, draws=20_000)["task"]
    difference = outcomes[:, 0] - outcomes[:, 1]
    bootstrapped = draws[:, 0] - draws[:, 1]
    (analytic,) = standard_errors(tasks, {"task": 1.0}, design, [difference[:, None]])
    assert analytic == pytest.approx(np.sqrt(difference.var(ddof=1) / 500))
    assert bootstrapped.std() == pytest.approx(analytic, rel=0.03)
    assert bootstrapped.mean() == pytest.approx(difference.mean(), abs=4 * analytic / np.sqrt(20_000))
    unpaired = np.sqrt(outcomes.var(axis=0, ddof=1).sum() / 500)
    assert analytic < 0.8 * unpaired


def test_counts_are_multinomial(make_tasks: MakeTasks) -> None:
    items = 40
    tasks, design = make_tasks({"task": np.eye(items)})  # model i counts item i
    draws = bootstrap_means(tasks, design, draws=20_000)["task"] * items
    assert np.allclose(draws.round(), draws)
    assert np.allclose(draws.sum(axis=1), items)
    assert draws.mean(axis=0) == pytest.approx(np.ones(items), abs=0.04)
    assert draws.var(axis=0).mean() == pytest.approx(1 - 1 / items, rel=0.02)
    covariance = np.cov(draws[:, 0], draws[:, 1])[0, 1]
    assert covariance == pytest.approx(-1 / items, abs=0.03)


def test_draws_depend_on_the_tasks_name_and_the_seed_only(make_tasks: MakeTasks) -> None:
    outcomes = correlated_outcomes(50, np.random.default_rng(1))
    draws = bootstrap_means(*make_tasks({"math": outcomes}), draws=100)["math"]
    beside_another = make_tasks({"code": outcomes[:20], "math": outcomes})
    assert np.array_equal(draws, bootstrap_means(*beside_another, draws=100)["math"])
    assert np.array_equal(draws[:, :1], bootstrap_means(*make_tasks({"math": outcomes[:, :1]}), draws=100)["math"])
    assert not np.array_equal(draws, bootstrap_means(*make_tasks({"code": outcomes}), draws=100)["code"])
    assert not np.array_equal(draws, bootstrap_means(*make_tasks({"math": outcomes}), draws=100, seed=1)["math"])


def test_memory_bound_does_not_shorten_the_draws(make_tasks: MakeTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.leaderboard.statistics.bootstrap._INDICES_AT_ONCE", 700)
    means = bootstrap_means(*make_tasks({"task": np.ones((50, 1))}), draws=101)["task"]
    assert np.array_equal(means, np.ones((101, 1)))


def test_one_problem_in_two_tasks_is_drawn_for_both(make_tasks: MakeTasks) -> None:
    outcomes = correlated_outcomes(60, np.random.default_rng(2))[:, :1]
    problems = [f"problem {number}" for number in range(60)]
    tasks, design = make_tasks(
        {"humaneval": outcomes, "plus": outcomes}, dict.fromkeys(("humaneval", "plus"), problems)
    )
    draws = bootstrap_means(tasks, design, draws=200)
    assert np.array_equal(draws["humaneval"], draws["plus"])
    apart = bootstrap_means(*make_tasks({"humaneval": outcomes, "plus": outcomes}), draws=200)
    assert not np.array_equal(apart["humaneval"], apart["plus"])


def test_every_draw_has_as_many_items_of_each_subject(make_tasks: MakeTasks) -> None:
    outcomes = np.repeat([0.0, 1.0], [30, 70])[:, None]
    subjects = ["anatomy"] * 30 + ["astronomy"] * 70
    tasks, design = make_tasks({"mmlu": outcomes}, subjects={"mmlu": subjects})
    assert np.all(bootstrap_means(tasks, design, draws=50)["mmlu"] == 0.7)


def test_rank_intervals_hold_the_places_of_most_draws() -> None:
    draws = np.tile([0.9, 0.5, 0.4], (1000, 1))
    draws[:100, 1:] = [0.4, 0.5]  # the second and the third change places in one draw of ten
    assert rank_intervals(draws) == [(1, 1), (2, 3), (2, 3)]
    draws[:, 1:] = [0.5, 0.4]
    draws[:20, 1:] = [0.4, 0.5]  # in one of fifty: less than 2.5 %
    assert rank_intervals(draws) == [(1, 1), (2, 2), (3, 3)]
    assert rank_intervals(np.ones((10, 2))) == [(1, 2), (1, 2)]
