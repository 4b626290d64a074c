"""The gate on records written by hand: what an expert must reach, what a zoo may state, and answers that went wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.results import Record, TaskOutcome
from harness.zoo.criteria import Criterion
from harness.zoo.gate import Limits, check_gate, gain_over, gated_models
from harness.zoo.models import Zoo, resolve_zoo


def task(name: str, outcomes: list[float], capability: str = "math", chance: float = 0.0, **counts: int) -> TaskOutcome:
    ids = tuple(f"{name}:{number}" for number in range(len(outcomes)))
    return TaskOutcome(name, capability, "acc,none", chance, ids, tuple(outcomes), counts=counts)


def record(*tasks: TaskOutcome, limit: int | None = None) -> Record:
    return Record(
        key="k",
        label="x",
        role="method",
        capability=None,
        recipe={},
        selection={},
        zoo={},
        suite={"tasks": {each.task: {"limit": limit} for each in tasks}},
        engine={},
        versions={},
        weights_digest=None,
        timings={},
        tasks=tasks,
    )


def zoo(**changed: Any) -> Zoo:
    return Zoo(**{"name": "z", "base": "o/base", "experts": {"math": "o/math"}, **changed})


BASE = record(task("sums", [0, 0, 1, 0]))
GOOD = record(task("sums", [1, 1, 1, 0]))


def off(criteria: list[Criterion]) -> list[tuple[str, str]]:
    return [(each.text, each.measured) for each in criteria if not each.holds]


def gate(zoo: Zoo, limits: Limits | None = None, **records: Record) -> list[tuple[str, str]]:
    return off(check_gate(zoo, {"base": BASE, **records}, limits or Limits()))


def test_an_expert_that_beats_its_base_passes() -> None:
    assert gate(zoo(), math=GOOD) == []


def test_the_gain_counts_item_by_item() -> None:
    """Differences 1, 1, 0, 0: their mean is 1/2, their variance 1/3, and of four the standard error is √(1/12)."""
    gain, error = gain_over(BASE, GOOD, "math")
    assert gain == 50.0
    assert error == pytest.approx(100 * math.sqrt(1 / 12))


def test_the_gain_over_several_tasks_is_their_plain_mean() -> None:
    base = record(task("a", [0, 0]), task("b", [0, 0, 0, 0]), task("c", [1, 1], capability="code"))
    expert = record(task("a", [1, 1]), task("b", [1, 0, 0, 1]), task("c", [0, 0], capability="code"))
    gain, error = gain_over(base, expert, "math")
    assert gain == 75.0
    assert error == pytest.approx(100 * math.sqrt(0 + (1 / 3) / 4) / 2)


def test_an_expert_within_the_noise_of_its_base_is_off() -> None:
    """Differences 1, 1, −1, 0 have the mean 1/4 and the variance 11/12: a standard error of √(11/48) ≈ 0.479."""
    text = "expert math on math: above the base by more than the standard error"
    assert gate(zoo(), math=record(task("sums", [1, 1, 0, 0]))) == [(text, "+25.0 ± 47.9")]
    assert gate(zoo(), math=BASE) == [(text, "+0.0 ± 0.0")]


def test_an_expert_at_chance_is_off_however_bad_its_base_is() -> None:
    base = record(task("choice", [0, 0, 0, 0], chance=0.5))
    found = gate(zoo(), base=base, math=record(task("choice", [1, 1, 0, 0], chance=0.5)))
    assert found == [("expert math on choice: above chance (50.0)", "50.0")]


def test_an_expert_whose_capability_nobody_measures_is_off() -> None:
    ((text, measured),) = gate(zoo(capabilities={"math": "algebra"}), math=GOOD)
    assert "the suite measures algebra (zoo.capabilities.math says" in text and measured == "only math"


def test_a_score_as_stated_passes_and_another_does_not() -> None:
    stated = {"math": {"sums": 75.0}, "base": {"math": 25.0}}
    assert gate(zoo(stated=stated, tolerance=0.0), math=GOOD) == []
    found = gate(zoo(stated={"math": {"sums": 71.2}}, tolerance=3.7), math=GOOD)
    assert found == [("math on sums: stated 71.2, within 3.7", "75.0 (+3.8)")]
    assert gate(zoo(stated={"math": {"sums": 71.2}}, tolerance=3.9), math=GOOD) == []


def test_over_a_part_of_the_items_the_noise_of_the_draw_is_allowed_for() -> None:
    """Three of four have the variance 1/4, so the score's standard error is 25 points: 50 and the tolerance hold."""
    some = record(task("sums", [1, 1, 1, 0]), limit=4)
    assert gate(zoo(stated={"math": {"sums": 24.0}}, tolerance=2.0), math=some) == []
    ((text, _),) = gate(zoo(stated={"math": {"sums": 22.0}}, tolerance=2.0), math=some)
    assert text == "math on sums: stated 22.0, within 2.0, and 50.0 more for a part of the items"


def test_what_is_stated_of_another_suite_is_said() -> None:
    ((_, measured),) = gate(zoo(stated={"math": {"gsm8k": 70.0}}), math=GOOD)
    assert measured == "not measured; the suite has sums, math"


def test_empty_and_truncated_answers_are_counted_against_the_worst_task() -> None:
    base = record(task("sums", [0, 0, 1, 0], empty=0, truncated=4), task("names", [0, 0], empty=0, truncated=1))
    expert = record(task("sums", [1, 1, 1, 0], empty=2, truncated=1), task("names", [1, 1], empty=0, truncated=0))
    assert gate(zoo(), Limits(empty=49.0, truncated=25.0), base=base, math=expert) == [
        ("base: at most 25 % of the answers of a task truncated", "100.0 % (sums)"),
        ("math: at most 49 % of the answers of a task empty", "50.0 % (sums)"),
    ]
    assert gate(zoo(), Limits(empty=50.0, truncated=100.0), base=base, math=expert) == []


def test_a_limit_is_a_percentage() -> None:
    with pytest.raises(ValueError, match=r"empty=101 must lie in 0\.\.100 percent"):
        Limits(empty=101)


def test_references_are_evaluated_only_where_something_is_stated_of_them() -> None:
    references = {"all": "o/all", "other": "o/other"}
    assert gated_models(zoo(references=references)) == ["base", "math"]
    assert gated_models(zoo(references=references, stated={"all": {"sums": 1.0}})) == ["base", "math", "all"]
    with pytest.raises(GraftbenchError, match=r"unknown model in zoo\.stated 'maths'; did you mean 'math'"):
        gated_models(zoo(stated={"maths": {"sums": 1.0}}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stated": {"math": 71.2}}, r"zoo\.stated\.math=71\.2: it takes scores by task or capability"),
        ({"stated": {"math": {"gsm8k": 712}}}, r"zoo\.stated\.math\.gsm8k=712: a score is a number of percent"),
        ({"stated": {"math": {"gsm8k": "high"}}}, r"zoo\.stated\.math\.gsm8k=high: a score is a number of percent"),
        ({"tolerance": -1}, r"zoo\.tolerance=-1: it is a number of points"),
        ({"tolerance": "some"}, r"zoo\.tolerance=some: it is a number of points"),
    ],
)
def test_what_is_no_score_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match=message):
        resolve_zoo({"base": str(tmp_path), **given}, tmp_path)


def test_a_zoo_hands_on_what_it_states(tmp_path: Path) -> None:
    found = resolve_zoo({"base": str(tmp_path), "stated": {"base": {"gsm8k": 1}}, "tolerance": 3}, tmp_path)
    assert (found.stated, found.tolerance) == ({"base": {"gsm8k": 1.0}}, 3.0)
