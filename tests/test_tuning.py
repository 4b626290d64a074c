"""Choosing hyper-parameters one option after the other."""

import yaml

from harness.tuning import Choice, as_yaml, choose


def test_later_options_are_tried_at_the_earlier_ones_best() -> None:
    tried: list[dict[str, float]] = []

    def objective(setting: dict[str, float]) -> float:
        tried.append(setting)
        return -abs(setting["scale"] - 2.0) - abs(setting["density"] - 0.3)

    choice = choose({"scale": [1.0, 2.0, 3.0], "density": [0.1, 0.3]}, {"scale": 1.0, "density": 0.1}, objective)
    assert choice == Choice({"scale": 2.0, "density": 0.3}, trials=4, objective=0.0)
    # The fourth setting of the grid, scale 2 at density 0.1, has been tried already.
    assert [(setting["scale"], setting["density"]) for setting in tried] == [(1, 0.1), (2, 0.1), (3, 0.1), (2, 0.3)]


def test_ties_go_to_the_value_that_is_declared_first() -> None:
    assert choose({"scale": [3.0, 1.0, 2.0]}, {"scale": 1.0}, lambda _: 50.0).values == {"scale": 3.0}


def test_the_file_is_a_configuration_of_the_group_tuned() -> None:
    choices = {"ties": Choice({"scale": 1.5, "density": 0.2}, 9, 61.234)}
    about = {"zoo": "tiny", "suite": "tiny", "split": "validation", "command": "graftbench tune"}
    text = as_yaml(choices, about)
    assert text == as_yaml(choices, about)
    assert text.startswith("# Hyper-parameters for zoo tiny and suite tiny, chosen on its validation items.\n")
    assert yaml.safe_load(text) == {
        "choices": {
            "ties": {
                "values": {"scale": 1.5, "density": 0.2},
                "trials": 9,
                "split": "validation",
                "objective": 61.23,
            }
        }
    }
