"""`method=mergekit recipe=FILE.yaml`: what the recipe gives, what the command line may add, and what it may not."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir

from harness.config import MergeSettings, RunSettings, merge_settings, run_settings
from harness.errors import GraftbenchError
from harness.method_choice import config_folder, register_methods
from harness.overrides import composed
from methods.generalized_task_arithmetic import GeneralizedTaskArithmetic

RECIPE = """
merge_method: dare_ties
base_model: org/base
models:
  - model: org/math
    parameters: {weight: 0.7, density: 0.5}
dtype: float16
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE)
    return file


def run(*overrides: object) -> RunSettings:
    register_methods()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return run_settings(*composed("run", ["method=mergekit", *map(str, overrides)]))


def merge(*overrides: object) -> MergeSettings:
    register_methods()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return merge_settings(*composed("merge", ["method=mergekit", "out=x", *map(str, overrides)]))


def refused(*overrides: object) -> str:
    with pytest.raises(GraftbenchError) as refusal:
        run(*overrides)
    return str(refusal.value)


def test_the_recipe_gives_method_models_and_dtype(recipe: Path) -> None:
    for settings in (run(f"recipe={recipe}"), merge(f"recipe={recipe}")):
        expected = GeneralizedTaskArithmetic(
            weight={"math": 0.7}, density={"math": 0.5}, select="random", elect=True, rescale=True
        )
        assert settings.method.method == expected
        assert (settings.method.name, settings.method.label) == ("generalized_task_arithmetic", "mergekit mine")
        assert (settings.method.role, settings.method.selection) == ("method", {"how": "given"})
        assert (settings.zoo["base"], settings.zoo["experts"]) == ("org/base", {"math": "org/math"})
        assert settings.merging.dtype == "float16"


def test_a_dtype_a_label_and_a_seed_are_given_by_hand(recipe: Path) -> None:
    settings = run(f"recipe={recipe}", "dtype=bfloat16", "label=ours", "zoo.name=pair", "method.seed=3")
    assert (settings.merging.dtype, settings.method.label, settings.zoo["name"]) == ("bfloat16", "ours", "pair")
    assert isinstance(settings.method.method, GeneralizedTaskArithmetic) and settings.method.method.seed == 3
    assert run(f"recipe={recipe}", "method.seed=3").method.label == "mergekit mine seed=3"


def test_models_are_not_given_twice(recipe: Path) -> None:
    assert "zoo=tiny cannot be given with method=mergekit" in refused(f"recipe={recipe}", "zoo=tiny")
    assert "zoo.base cannot be given" in refused(f"recipe={recipe}", "zoo.base=org/other")
    assert "zoo.experts cannot be given" in refused(f"recipe={recipe}", "++zoo.experts.math=org/other")


def test_recipe_and_method_need_each_other(recipe: Path) -> None:
    assert "name it with recipe=FILE.yaml" in refused()
    assert "is read by method=mergekit" in refused(f"recipe={recipe}", "method=ties")
    assert "method.density cannot be given" in refused(f"recipe={recipe}", "+method.density=0.3")
    assert "method.seed=much: input should be a valid integer" in refused(f"recipe={recipe}", "method.seed=much")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ties_mergekit", GeneralizedTaskArithmetic(select="magnitude", elect=True, normalize=True)),
        ("dare_mergekit", GeneralizedTaskArithmetic(select="random", rescale=True)),
    ],
)
def test_presets_mean_what_mergekit_means(name: str, expected: GeneralizedTaskArithmetic) -> None:
    assert run(f"method={name}").method.method == expected
    given = run(f"method={name}", "method.density=[0.1,0.5]", "method.weight=[{filter: mlp, value: 2}, {value: 1}]")
    assert isinstance(given.method.method, GeneralizedTaskArithmetic)
    assert given.method.method.density == [0.1, 0.5]
    with pytest.raises(GraftbenchError, match=r"method\.weight\.0\.filtre'; did you mean 'method\.weight\.0\.filter'"):
        run(f"method={name}", "method.weight=[{filtre: mlp, value: 2}, {value: 1}]")
