"""A model that joins a board from outside of the zoo: what its row is called, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import run_settings
from harness.errors import GraftbenchError
from harness.overrides import check, read_command_line
from harness.zoo.existing import existing_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "my-merge"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def written(model: Path, method: str, hyperparameters: dict[str, Any]) -> Path:
    recipe = {"method": method, "experts": {"math": "d1", "code": "d2"}, "hyperparameters": hyperparameters}
    (model / "merge.json").write_text(json.dumps({"recipe": recipe}))
    return model


def test_a_folder_gives_the_row_its_name(model: Path) -> None:
    found = existing_model(str(model))
    assert (found.source, found.label) == (model, "my-merge")


def test_a_folder_is_called_what_it_is_called_from_within(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    assert existing_model(".").label == "my-merge"


def test_a_hub_name_keeps_its_revision() -> None:
    found = existing_model("owner/model@v1.0")
    assert (found.source, found.label) == ("owner/model@v1.0", "owner/model@v1.0")


def test_a_merge_of_ours_is_named_after_its_recipe(model: Path) -> None:
    defaults = {"density": 0.2, "scale": 1.0, "scope": "model", "weights": {}}
    assert existing_model(str(written(model, "ties", defaults))).label == "ties of code+math"
    changed = defaults | {"density": 0.3, "weights": {"math": 2.0}}
    assert (
        existing_model(str(written(model, "ties", changed))).label == "ties density=0.3 weights.math=2.0 of code+math"
    )


def test_the_options_of_a_strangers_method_are_not_guessed(model: Path) -> None:
    assert existing_model(str(written(model, "mine", {"share": 0.5}))).label == "mine of code+math"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": {"method": "ties"}}', '{"recipe": 3}'])
def test_a_merge_json_of_another_kind_is_no_name(model: Path, text: str) -> None:
    (model / "merge.json").write_text(text)
    assert existing_model(str(model)).label == "my-merge"


def test_an_adapter_stands_on_its_own_base(model: Path, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    found = existing_model(f"{model}+{tmp_path / 'lora'}")
    assert (found.label, found.base) == ("my-merge+lora", str(model))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "model=nowhere: there is no such folder"),
        ("{model}/config.json", "is a file; name the folder of the checkpoint that holds it"),
        ("{model}/..", r"config\.json does not exist, so this is no checkpoint"),
        (" ", "model= is empty"),
    ],
)
def test_what_is_no_checkpoint_is_refused(model: Path, given: str, message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        existing_model(given.format(model=model))


def test_a_list_is_no_single_model() -> None:
    with pytest.raises(GraftbenchError, match="-m model=A,B evaluates several"):
        existing_model(["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "zoo"),
    [
        (("suite=stock",), "none"),
        (("suite=stock", "zoo=tiny"), "tiny"),
        (("suite=stock", "zoo=smollm2_gguf"), "smollm2_gguf"),
        (("suite=stock", "zoo.build.seed=1"), "tiny"),
        (("suite=tiny",), "tiny"),
        (("suite=tiny", "suite.data_root=."), "none"),
        (("suite=custom", "suite.tasks={arc_easy:{},tiny_math:{}}"), "tiny"),
        (("suite=custom", "suite.tasks={arc_easy:{}}"), "none"),
        (("suite=stock", "experiment=tiny"), "tiny"),
    ],
)
def test_a_set_is_built_for_it_only_if_somebody_needs_one(model: Path, arguments: tuple[str, ...], zoo: str) -> None:
    """Named by the user or an experiment, or read from by the suite."""
    (settings,) = check("run", read_command_line([f"model={model}", *arguments]), run_settings)
    assert settings.zoo["name"] == zoo


def test_a_merge_always_has_a_set() -> None:
    (settings,) = check("run", read_command_line(["method=ties", "suite=stock"]), run_settings)
    assert settings.zoo["name"] == "tiny"
