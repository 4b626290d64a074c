"""Clusters and strata, and standard errors from them, against statsmodels and closed forms."""

import numpy as np
import pytest
import statsmodels.api as sm

from harness.leaderboard.statistics import (
    contributions,
    correlations,
    mean_interval,
    normal_interval,
    standard_errors,
    wilson_interval,
)
from tests.leaderboard.statistics.conftest import MakeTasks


def test_independent_items_give_the_standard_error_of_each_task_in_quadrature(make_tasks: MakeTasks) -> None:
    # One right in four, and two in four: variances 1/4 and 1/3, over 4 items each.
    outcomes = {"math": np.array([[1.0], [0], [0], [0]]), "code": np.array([[1.0], [1], [0], [0]])}
    tasks, design = make_tasks(outcomes)
    (error,) = standard_errors(tasks, {"math": 0.6, "code": 0.4}, design)
    assert error**2 == pytest.approx(0.36 / 16 + 0.16 / 12)
    assert [(stratum.name, len(stratum.clusters)) for stratum in design.strata] == [("code", 4), ("math", 4)]
    assert contributions(tasks, {"math": 0.6, "code": 0.4}, design.clusters).sum() == pytest.approx(0.6 / 4 + 0.4 / 2)


def test_clustered_standard_errors_are_those_of_statsmodels(make_tasks: MakeTasks) -> None:
    generator = np.random.default_rng(1)
    passages = generator.integers(0, 30, size=200)  # of unequal sizes
    outcomes = (generator.random(200) < 0.3 + 0.4 * generator.random(30)[passages]).astype(float)
    fit = sm.OLS(outcomes, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": passages})
    tasks, design = make_tasks({"drop": outcomes[:, None]}, {"drop": [f"passage {p}" for p in passages]})
    assert standard_errors(tasks, {"drop": 1.0}, design) == pytest.approx(fit.bse)
    assert fit.bse[0] > 1.1 * outcomes.std(ddof=1) / np.sqrt(200)


def test_subjects_are_strata(make_tasks: MakeTasks) -> None:
    generator = np.random.default_rng(2)
    easy, hard = (generator.random((n, 1)) < p for n, p in ((60, 0.95), (40, 0.2)))
    outcomes = np.concatenate([easy, hard]).astype(float)
    tasks, design = make_tasks({"mmlu": outcomes}, subjects={"mmlu": ["easy"] * 60 + ["hard"] * 40})
    stratified = np.sqrt(0.36 * easy.var(ddof=1) / 60 + 0.16 * hard.var(ddof=1) / 40)
    assert standard_errors(tasks, {"mmlu": 1.0}, design) == pytest.approx([stratified])
    assert stratified < outcomes.std(ddof=1) / 10


def test_subjects_of_one_item_are_pooled(make_tasks: MakeTasks) -> None:
    outcomes = np.array([[1.0], [0], [1], [1]])
    tasks, design = make_tasks({"mmlu": outcomes}, subjects={"mmlu": ["a", "b", "c", "d"]})
    assert len(design.strata) == 1
    assert standard_errors(tasks, {"mmlu": 1.0}, design) == pytest.approx([outcomes.std(ddof=1) / 2])


def test_a_single_cluster_has_no_standard_error(make_tasks: MakeTasks) -> None:
    tasks, design = make_tasks({"drop": np.array([[1.0], [0.0]])}, {"drop": ["passage", "passage"]})
    assert np.isnan(standard_errors(tasks, {"drop": 1.0}, design)).all()


def test_one_problem_in_two_tasks_counts_once(make_tasks: MakeTasks) -> None:
    generator = np.random.default_rng(3)
    outcomes = (generator.random((50, 1)) < 0.6).astype(float)
    problems = [f"problem {number}" for number in range(50)]
    both = {"humaneval": outcomes, "plus": outcomes}
    tasks, design = make_tasks(both, dict.fromkeys(both, problems))
    alone = outcomes.std(ddof=1) / np.sqrt(50)
    half = {"humaneval": 0.5, "plus": 0.5}
    assert standard_errors(tasks, half, design) == pytest.approx([alone])
    assert standard_errors(*_swapped(make_tasks(both), half)) == pytest.approx([alone / np.sqrt(2)])
    between = correlations(tasks, design)
    assert between is not None
    assert between[0] == pytest.approx(np.ones((2, 2)))
    assert correlations(*make_tasks(both)) is None


def _swapped(made, weights):  # type: ignore[no-untyped-def]
    tasks, design = made
    return tasks, weights, design


def test_problems_that_only_one_of_two_tasks_has_are_a_stratum_of_their_own(make_tasks: MakeTasks) -> None:
    tasks, design = make_tasks(
        {"mbpp": np.ones((5, 1)), "plus": np.ones((3, 1))},
        {"mbpp": ["a", "b", "c", "d", "e"], "plus": ["c", "d", "e"]},
    )
    assert [(stratum.tasks, len(stratum.clusters)) for stratum in design.strata] == [
        (("mbpp",), 2),
        (("mbpp", "plus"), 3),
    ]
    assert not design.independent
    assert [task.clusters.tolist() for task in tasks] == [[0, 1, 2, 3, 4], [2, 3, 4]]


def test_intervals_of_clustered_items_cover_95_percent(make_tasks: MakeTasks) -> None:
    """4,000 replicates of 60 passages with 1 to 6 questions each; a passage is understood or it is not. Counting
    questions as if they were independent, as Wilson's interval does, covers far less."""
    generator = np.random.default_rng(4)
    passages = np.repeat(np.arange(60), np.tile(np.arange(1, 7), 10))
    understood = generator.random((60, 4000)) < 0.5
    right = np.where(understood[passages], 0.9, 0.3)
    outcomes = (generator.random(right.shape) < right).astype(float)
    tasks, design = make_tasks({"drop": outcomes}, {"drop": [f"passage {p:02d}" for p in passages]})
    errors = standard_errors(tasks, {"drop": 1.0}, design)
    clusters = len(np.unique(passages))
    intervals = [mean_interval(outcomes[:, i], float(errors[i]), clusters) for i in range(4000)]
    assert 0.93 <= np.mean([interval.contains(0.6) for interval in intervals]) <= 0.97
    naive = [wilson_interval(float(mean), len(passages)).contains(0.6) for mean in outcomes.mean(axis=0)]
    assert np.mean(naive) < 0.88


def test_intervals_of_paired_differences_cover_95_percent(make_tasks: MakeTasks) -> None:
    """4,000 replicates of two tasks, one of them of problems that a third task has too, models 5 points apart."""
    generator = np.random.default_rng(5)
    differences, truth = [], 0.05
    shared = generator.random((80, 4000))
    for items, level in ((150, generator.random((150, 4000))), (80, shared), (80, shared)):
        noise = generator.random((2, items, 4000))
        first, second = (0.6 * level + 0.4 * each < p for each, p in zip(noise, (0.6, 0.55), strict=True))
        differences.append(first.astype(float) - second.astype(float))
    # P(0.6 u + 0.4 v < x) is x/0.6 - 1/3 between 0.4 and 0.6, so that 0.05 more is 1/12 of the items more.
    truth = 0.05 / 0.6
    problems = [f"problem {number:02d}" for number in range(80)]
    names = ("math", "humaneval", "plus")
    tasks, design = make_tasks(dict(zip(names, differences, strict=True)), {"humaneval": problems, "plus": problems})
    weights = {"math": 0.5, "humaneval": 0.25, "plus": 0.25}
    means = contributions(tasks, weights, design.clusters).sum(axis=0)
    errors = standard_errors(tasks, weights, design)
    covered = [normal_interval(float(m), float(e)).contains(truth) for m, e in zip(means, errors, strict=True)]
    assert 0.93 <= np.mean(covered) <= 0.97
