"""The criteria of a model set, on scores written by hand."""

from __future__ import annotations

import pytest

from harness.errors import GraftbenchError
from harness.zoo.criteria import check_criteria, retention

BASE = {"math": 40.0, "code": 60.0}
EXPERTS = {"math": {"math": 90.0, "code": 45.0}, "code": {"math": 20.0, "code": 85.0}}
AVERAGE = {"math": 55.0, "code": 65.0}


def failing(base: dict[str, float], experts: dict[str, dict[str, float]], average: dict[str, float]) -> list[str]:
    return [criterion.text for criterion in check_criteria(base, experts, average) if not criterion.holds]


def test_a_good_set_meets_all_criteria() -> None:
    criteria = check_criteria(BASE, EXPERTS, AVERAGE)
    assert all(criterion.holds for criterion in criteria)
    assert len(criteria) == 2 + 2 * 3 + 1, "base per capability, three per expert, and the average"
    assert [c.measured for c in criteria] == [
        "40.0",
        "60.0",
        "90.0",
        "+50.0",
        "75 %",
        "85.0",
        "+25.0",
        "50 %",
        "60.0 against 50.0",
    ]


def test_thresholds_themselves_are_good_enough() -> None:
    base = {"math": 25.0, "code": 75.0}
    experts = {"math": {"math": 80.0, "code": 37.5}, "code": {"math": 12.5, "code": 95.0}}
    assert failing(base, experts, {"math": 50.1, "code": 50.0}) == []


def test_each_criterion_fails_alone() -> None:
    assert failing({**BASE, "math": 24.9}, EXPERTS, AVERAGE) == ["base on math: between 25 and 75"]
    low = {**EXPERTS, "math": {"math": 79.9, "code": 45.0}}
    assert failing(BASE, low, AVERAGE) == ["expert math on its own: at least 80"]
    flat = {"math": 40.0, "code": 65.1}
    assert failing(flat, EXPERTS, AVERAGE) == ["expert code on its own: at least 20 above the base"]
    forgetful = {**EXPERTS, "code": {"math": 19.9, "code": 85.0}}
    assert failing(BASE, forgetful, AVERAGE) == [
        "expert code on the others: keeps at least 50 % of the base's score on average"
    ]
    assert failing(BASE, EXPERTS, BASE) == [
        "plain average of the experts: better than the base on the mean of all capabilities"
    ]


def test_retention_is_the_mean_of_ratios() -> None:
    base = {"math": 50.0, "code": 40.0, "knowledge": 25.0}
    # 20/40 = 50 % and 25/25 = 100 %; the own capability does not count.
    assert retention(base, {"math": 99.0, "code": 20.0, "knowledge": 25.0}, "math") == 75.0


def test_missing_scores_are_named() -> None:
    with pytest.raises(GraftbenchError, match="no score of average on code"):
        check_criteria(BASE, EXPERTS, {"math": 55.0})
    with pytest.raises(GraftbenchError, match="no expert for code"):
        check_criteria(BASE, {"math": EXPERTS["math"]}, AVERAGE)
    with pytest.raises(GraftbenchError, match="scores 0 on code"):
        check_criteria({**BASE, "code": 0.0}, EXPERTS, AVERAGE)
