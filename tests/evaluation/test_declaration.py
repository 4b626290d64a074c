from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.declaration import find_declaration, read_declaration


def test_stock_tasks_are_found_by_name_with_their_includes() -> None:
    anatomy = find_declaration("mmlu_anatomy")
    assert anatomy.fields["dataset_path"] == "cais/mmlu"  # declared in an included file
    assert anatomy.fields["dataset_name"] == "anatomy"
    assert anatomy.metrics() == ["acc,none"]
    assert anatomy.path.parent.name == "default"


def test_metrics_that_can_count_are_means_over_items() -> None:
    """ifeval's inst_level metrics pool the instructions of all items, so that they are no mean over items."""
    assert find_declaration("ifeval").metrics() == ["prompt_level_strict_acc,none", "prompt_level_loose_acc,none"]
    assert find_declaration("gsm8k").metrics() == ["exact_match,strict-match", "exact_match,flexible-extract"]


def test_functions_stay_references() -> None:
    declaration = find_declaration("ifeval")
    reference = declaration.fields["process_results"]
    assert (reference.module.name, reference.name) == ("utils.py", "process_results")
    assert {"instructions.py", "utils.py"} <= {file.name for file in declaration.code_files()}


def test_tasks_of_ones_own_win(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: gsm8k\ntest_split: mine\n")
    assert find_declaration("gsm8k", [str(tmp_path)]).test_split == "mine"
    assert find_declaration("gsm8k").test_split == "test"


def test_local_keys_win_over_included_ones(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/base.yaml").write_text("task: base\ntest_split: a\nmetadata: {version: 1, note: x}\n")
    (tmp_path / "mine.yaml").write_text("include: sub/base.yaml\ntask: mine\nmetadata: {version: 2}\n")
    assert read_declaration(tmp_path / "mine.yaml") == {
        "task": "mine",
        "test_split": "a",
        "metadata": {"version": 2},
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8kk", "unknown lm-eval task 'gsm8kk'; did you mean 'gsm8k'"),
        ("mmmlu_anatomy", "did you mean 'mmlu_anatomy'"),
        ("squadv2", "'squadv2' is a Python class"),
    ],
)
def test_names_that_cannot_be_run(name: str, message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        find_declaration(name)


def test_a_missing_folder_of_declarations() -> None:
    with pytest.raises(GraftbenchError, match="'/nowhere', which is not a folder"):
        find_declaration("gsm8k", ["/nowhere"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: broken\nmetric_list: [", "cannot be read as a task declaration"),
        ("task: broken\ninclude: nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("task: broken\ninclude: broken.yaml", "it includes itself"),
    ],
)
def test_broken_declarations(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(GraftbenchError, match=message):
        find_declaration("broken", [str(tmp_path)])
