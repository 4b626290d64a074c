"""Choosing hyper-parameters one option after the other."""

from pathlib import Path

import yaml
from hydra import initialize_config_dir

from harness.method_choice import config_folder, register_methods
from harness.overrides import composed
from harness.tuning import Choice, Trial, as_yaml, choose, unequal_trials

CONF = Path(__file__).parents[1] / "conf"


def test_later_options_are_tried_at_the_earlier_ones_best() -> None:
    tried: list[dict[str, float]] = []

    def trial(setting: dict[str, float]) -> Trial:
        tried.append(setting)
        return Trial(-abs(setting["scale"] - 2.0) - abs(setting["density"] - 0.3), seconds=1.5)

    choice = choose({"scale": [1.0, 2.0, 3.0], "density": [0.1, 0.3]}, {"scale": 1.0, "density": 0.1}, trial)
    assert choice == Choice({"scale": 2.0, "density": 0.3}, trials=4, objective=0.0, seconds=6.0)
    # The fourth setting of the grid, scale 2 at density 0.1, has been tried already.
    assert [(setting["scale"], setting["density"]) for setting in tried] == [(1, 0.1), (2, 0.1), (3, 0.1), (2, 0.3)]


def test_ties_go_to_the_value_that_is_declared_first() -> None:
    assert choose({"scale": [3.0, 1.0, 2.0]}, {"scale": 1.0}, lambda _: Trial(50.0, 1.0)).values == {"scale": 3.0}


def test_the_file_is_a_configuration_of_the_group_tuned() -> None:
    choices = {"ties": Choice({"scale": 1.5, "density": 0.2}, 9, 61.234, 70.06)}
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
                "seconds": 70.1,
            }
        }
    }


def test_every_method_of_the_declared_grid_gets_the_same_number_of_trials() -> None:
    """Whatever turns out to be best: a board sets aside what had another number."""
    register_methods()
    grid = yaml.safe_load((CONF / "tune.yaml").read_text(encoding="utf-8"))["grid"]
    for prefer in (min, max):
        choices = {}
        for configuration, options in grid.items():
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                defaults, _ = composed("run", [f"method={configuration}"])
            best = {option: prefer(values) for option, values in options.items()}

            def trial(setting: dict[str, float], best: dict[str, float] = best) -> Trial:
                return Trial(float(sum(setting[option] == value for option, value in best.items())), 0.0)

            choices[configuration] = choose(options, defaults["method"], trial)
            assert choices[configuration].values == best
        assert {choice.trials for choice in choices.values()} == {9}
        assert unequal_trials(choices) is None


def test_unequal_numbers_of_trials_are_named() -> None:
    choices = {"ties": Choice({}, 9, 0.0, 0.0), "ota": Choice({}, 5, 0.0, 0.0)}
    assert "different numbers of trials" in str(unequal_trials(choices))
    assert str(unequal_trials(choices)).endswith("ota 5, ties 9")
