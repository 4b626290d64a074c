from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import GraftbenchError
from harness.evaluation.suite import TaskSpec, suite_from_config

SUITES = Path(__file__).parents[2] / "conf" / "suite"


def test_a_task_may_be_named_without_settings() -> None:
    suite = suite_from_config({"tasks": {"gsm8k": {}, "ifeval": None}})
    assert suite.tasks == {"gsm8k": TaskSpec(), "ifeval": TaskSpec()}


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    suite = suite_from_config({"tasks": {"gsm8k": {}}, "data_root": "data", "include_path": ["mine"]})
    assert suite.data_root == tmp_path / "data"
    assert suite.include_path == [str(tmp_path / "mine")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tasks": {}}, "has no tasks"),
        ({"tasks": {"gsm8k": {}}, "splitt": "test"}, "unknown option of suite 'splitt'; did you mean 'split'"),
        ({"tasks": {"gsm8k": {"fewshot": 1}}}, "suite.tasks.gsm8k 'fewshot'; did you mean 'num_fewshot'"),
        ({"tasks": {"gsm8k": {}}, "split": "train"}, "unknown value of suite.split 'train'"),
        ({"tasks": {"gsm8k": {}}, "limit": 0}, "suite.limit is 0"),
        ({"tasks": {"gsm8k": {"limit": -1}}}, "suite.tasks.gsm8k.limit is -1"),
        ({"tasks": {"gsm8k": {"chance": 25}}}, "chance is 25"),
        ({"tasks": {"gsm8k": {"num_fewshot": -1}}}, "num_fewshot is -1"),
        ({"tasks": {"drop": {"cluster": {"field": "passage"}}}}, "cluster is .* it takes {family: NAME, field: NAME}"),
    ],
)
def test_bad_settings_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        suite_from_config(config)


@pytest.mark.parametrize("name", ["tiny", "stock"])
def test_committed_suites_are_valid(name: str) -> None:
    suite = suite_from_config(yaml.safe_load((SUITES / f"{name}.yaml").read_text()))
    assert suite.name == name
    assert suite.tasks


def test_the_custom_suite_asks_for_tasks() -> None:
    custom = yaml.safe_load((SUITES / "custom.yaml").read_text())
    with pytest.raises(GraftbenchError, match="suite 'custom' has no tasks"):
        suite_from_config(custom)
    assert list(suite_from_config({**custom, "tasks": {"gsm8k": {}}}).tasks) == ["gsm8k"]
