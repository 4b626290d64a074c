"""Hyper-parameters by layer and by name, at values that can be worked out by hand."""

from typing import Any

import pytest

from methods.generalized_task_arithmetic import GeneralizedTaskArithmetic
from methods.interface import Site
from methods.schedules import Rule, numbers_in, value_at, values_at


def site(layer: int | None, layers: int = 5, name: str = "model.layers.0.mlp.up_proj.weight") -> Site:
    return Site(name, layer=layer, layers=layers)


@pytest.mark.parametrize(
    ("gradient", "layer", "expected"),
    [
        ([0.0, 1.0], 0, 0.0),
        ([0.0, 1.0], 1, 0.25),
        ([0.0, 1.0], 4, 1.0),
        ([0.0, 1.0, 0.5], 2, 1.0),
        ([0.0, 1.0, 0.5], 3, 0.75),
        ([3.0], 2, 3.0),
        ([0.2, 0.4], None, 0.2),
    ],
)
def test_a_gradient_is_spread_evenly_over_the_blocks(gradient: list[float], layer: int | None, expected: float) -> None:
    assert value_at(gradient, site(layer)) == pytest.approx(expected, rel=1e-15)


def test_a_single_block_takes_the_end_of_a_gradient() -> None:
    assert value_at([0.2, 0.4], site(0, layers=1)) == 0.4


def test_the_first_rule_that_holds_counts() -> None:
    rules = [Rule([0.0, 1.0], "mlp"), Rule(7.0, "up_proj"), Rule(2.0, "*"), Rule(3.0)]
    assert value_at(rules, site(2)) == 0.5
    assert value_at(rules, site(2, name="model.layers.2.self_attn.q_proj.weight")) == 2.0


def test_schedules_by_expert() -> None:
    assert values_at({"y": [0.0, 1.0], "x": 3.0}, site(4), ("x", "y")) == [3.0, 1.0]
    assert values_at([0.0, 1.0], site(4), ("x", "y")) == [1.0, 1.0]
    assert numbers_in({"y": [0.0, 1.0], "x": [Rule([5.0, 6.0], "a"), Rule(7.0)]}) == [0.0, 1.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": []}, "weight=.* is an empty list"),
        ({"weight": {"x": []}}, "weight=.* is an empty list"),
        ({"scale": [Rule([])]}, "scale=.* has a rule with an empty list"),
        ({"weight": [Rule(1.0, "mlp")]}, "weight=.* needs a last rule without a filter"),
        ({"density": [0.5, 1.5]}, "density=.* must lie in 0..1"),
        ({"density": {"x": [Rule(-0.1)]}}, "density=.* must lie in 0..1"),
    ],
)
def test_schedules_that_leave_something_open_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneralizedTaskArithmetic(**options)
