"""The paired test against scipy, statsmodels and simulation; Holm's correction against statsmodels."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from harness.leaderboard.statistics import (
    FLIPS,
    FloatArray,
    contributions,
    holm,
    sign_flip_p_values,
    smallest_detectable_difference,
    standard_errors,
)
from harness.leaderboard.statistics import permutation as module
from tests.leaderboard.statistics.conftest import MakeTasks


@pytest.mark.parametrize(("better", "worse"), [(6, 0), (5, 0), (12, 4), (7, 7), (40, 25), (300, 250)])
def test_one_task_of_right_and_wrong_answers_gives_the_exact_mcnemar_test(better: int, worse: int) -> None:
    differences = np.concatenate([np.ones(better), -np.ones(worse), np.zeros(50)])[:, None] / 500
    expected = mcnemar([[20, better], [worse, 30]], exact=True).pvalue
    assert sign_flip_p_values(differences)[0] == pytest.approx(expected, abs=1e-12)


def test_tasks_of_different_weight_are_enumerated() -> None:
    differences = np.array([0.3, 0.3, -0.3, 0.1, 0.1, 0.1, -0.1, 0.05])
    sums = np.array([np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=8)])
    expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p_values(differences[:, None])[0] == pytest.approx(expected)
    result = permutation_test(
        (differences,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert expected == pytest.approx(result.pvalue)


@pytest.mark.parametrize("common", [1, 16, 1000])
def test_drawn_p_values_agree_with_the_exact_ones(monkeypatch: pytest.MonkeyPatch, common: int) -> None:
    """As counts of coins, from tables of bytes, and as both."""
    generator = np.random.default_rng(1)
    sizes = generator.choice([1 / 1500, 1 / 1000, 1 / 800], size=(120, 8))
    differences = sizes * generator.choice([-1.0, 0.0, 0.0, 1.0], p=[0.2, 0.3, 0.2, 0.3], size=sizes.shape)
    exact = sign_flip_p_values(differences)
    monkeypatch.setattr(module, "_exact", lambda *_: pytest.fail("it should be drawn"))
    monkeypatch.setattr(module, "_COMMON", common)
    draws = 20_000
    monkeypatch.setattr(np, "prod", lambda _: float("inf"))
    drawn = sign_flip_p_values(differences, draws=draws)
    assert np.array_equal(drawn, sign_flip_p_values(differences, draws=draws))
    error = np.sqrt(exact * (1 - exact) / draws) + 1 / draws
    assert np.all(np.abs(drawn - exact) < 4 * error)


def test_no_drawn_p_value_is_zero_and_equal_rows_have_one() -> None:
    generator = np.random.default_rng(2)
    differences = np.stack([generator.random(500) / 500, np.zeros(500)], axis=1)
    assert sign_flip_p_values(differences) == pytest.approx([1 / (1 + FLIPS), 1.0], rel=1e-9)


def test_a_pairs_p_value_does_not_depend_on_the_others_or_on_its_sign_or_scale() -> None:
    generator = np.random.default_rng(3)
    differences = generator.choice([-1, 0, 1], size=(300, 5)) * generator.choice(
        [1 / 3, 1 / 5, 1 / 7, 1.0], size=(300, 1)
    )
    together = sign_flip_p_values(differences)
    assert [sign_flip_p_values(differences[:, [i]])[0] for i in range(5)] == list(together)
    assert np.array_equal(sign_flip_p_values(-differences / 1000), together)


def test_too_few_differing_items_never_tell_rows_apart() -> None:
    for differing in range(1, 12):
        p_value = sign_flip_p_values(np.ones((differing, 1)))[0]
        assert p_value == pytest.approx(2.0 ** (1 - differing))
        assert (p_value <= 0.05) == (differing >= 6)


def _pairs(
    replicates: int, apart: float, make_tasks: MakeTasks, generator: np.random.Generator, shared: bool = True
) -> tuple[FloatArray, FloatArray]:
    """Differences between two models on 400 items of one task and 60 problems that two others share, weighted as on a
    board, and their standard errors; the first model is better by `apart` in expectation."""
    weights = {"math": 0.5, "humaneval": 0.25, "plus": 0.25}
    differences = {}
    skill = 0.6 * np.array([0.0, apart])
    problems, answers = generator.random((60, replicates)), generator.random((2, 60, replicates))
    for task, level in (("math", generator.random((400, replicates))), ("humaneval", problems), ("plus", problems)):
        noise = generator.random((2, *level.shape)) if task == "math" else answers  # more tests seldom change a verdict
        first, second = (0.6 * level + 0.4 * n < 0.5 + s for n, s in zip(noise, skill[::-1], strict=True))
        differences[task] = first.astype(float) - second.astype(float)
    names = [f"problem {number:02d}" for number in range(60)]
    tasks, design = make_tasks(differences, {"humaneval": names, "plus": names} if shared else None)
    return contributions(tasks, weights, design.clusters), standard_errors(tasks, weights, design)


def test_it_rejects_at_most_5_percent_of_equally_good_models(make_tasks: MakeTasks) -> None:
    """4,000 replicates. Items that are one problem in two tasks are flipped together; apart, too many are rejected."""
    error = np.sqrt(0.05 * 0.95 / 4000)
    differences, _ = _pairs(4000, 0.0, make_tasks, np.random.default_rng(6))
    assert 0.03 <= np.mean(sign_flip_p_values(differences, draws=2_000) <= 0.05) <= 0.05 + 2 * error
    apart, _ = _pairs(4000, 0.0, make_tasks, np.random.default_rng(6), shared=False)
    assert np.mean(sign_flip_p_values(apart, draws=2_000) <= 0.05) > 0.05 + 5 * error


def test_it_finds_the_smallest_detectable_difference_with_the_power_that_is_stated(make_tasks: MakeTasks) -> None:
    """4,000 replicates at the difference that the board would print: 80 % of them are found."""
    generator = np.random.default_rng(7)
    _, errors = _pairs(500, 0.08, make_tasks, generator)
    detectable = smallest_detectable_difference(float(np.median(errors)))
    assert detectable == pytest.approx(0.08, abs=0.02)
    differences, _ = _pairs(4000, detectable, make_tasks, generator)
    assert differences.sum(axis=0).mean() == pytest.approx(detectable, rel=0.03)
    assert np.mean(sign_flip_p_values(differences, draws=2_000) <= 0.05) == pytest.approx(0.8, abs=0.03)


def test_holm_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(8)
    for count in (1, 2, 7, 30):
        p_values = generator.random(count) ** 3
        p_values[: count // 2] = p_values[0]  # ties
        assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_holm_keeps_false_rejections_of_a_family_rare() -> None:
    """4,000 families of ten true null hypotheses: any rejection in at most 5 % of them, and in 40 % without it."""
    p_values = norm.sf(np.abs(np.random.default_rng(9).standard_normal((4000, 10)))) * 2
    assert np.mean([min(holm(list(family))) <= 0.05 for family in p_values]) <= 0.057
    assert np.mean(p_values.min(axis=1) <= 0.05) > 0.35
