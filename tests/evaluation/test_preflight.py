"""Everything that would stop an evaluation is said before it starts, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.preflight import preflight
from harness.evaluation.suite import suite_from_config


def problems(**config: Any) -> str:
    with pytest.raises(GraftbenchError) as caught:
        preflight(suite_from_config(config))
    return str(caught.value)


def test_a_complete_suite_passes(mirror: Path, punkt_tab: None) -> None:
    preflight(suite_from_config({"tasks": {"gsm8k": {}, "ifeval": {}, "mmlu_anatomy": {}}, "data_root": mirror}))


def test_all_problems_are_listed_at_once(mirror: Path, own_tasks: Path) -> None:
    found = problems(
        tasks={"gsm8kk": {}, "mmlu_anatomy": {"metric": "f1,none"}, "program": {}},
        data_root=mirror,
        include_path=[str(own_tasks)],
    )
    assert "did you mean 'gsm8k'" in found
    assert "task 'mmlu_anatomy' has no metric 'f1,none' that is a mean over items; it has: acc,none" in found
    assert "task 'program' runs code that the model writes" in found


def test_a_metric_that_is_no_mean_over_items(mirror: Path, punkt_tab: None) -> None:
    found = problems(tasks={"ifeval": {"metric": "inst_level_strict_acc,none"}}, data_root=mirror)
    assert "it has: prompt_level_strict_acc,none; prompt_level_loose_acc,none" in found


def test_missing_data_offline(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "empty")
    found = problems(tasks={"mmlu_astronomy": {}}, data_root=mirror)
    assert "'cais/mmlu/astronomy'" in found
    assert str(mirror / "cais/mmlu/astronomy") in found
    assert "suite.data_root" in found


def test_missing_split_in_the_mirror(mirror: Path) -> None:
    (mirror / "openai/gsm8k/main/train.jsonl").unlink()
    assert "needs the split 'train'" in problems(tasks={"gsm8k": {}}, data_root=mirror)
    preflight(suite_from_config({"tasks": {"gsm8k": {"num_fewshot": 0}}, "data_root": mirror}))


def test_missing_punkt_tab(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    found = problems(tasks={"ifeval": {}}, data_root=mirror)
    assert "punkt_tab" in found and "NLTK_DATA" in found


def test_no_validation_items(mirror: Path) -> None:
    found = problems(tasks={"gsm8k": {}}, data_root=mirror, split="validation")
    assert "task 'gsm8k' has no validation items" in found


def test_nowhere_to_take_examples_from(mirror: Path, own_tasks: Path) -> None:
    found = problems(tasks={"echo": {"num_fewshot": 2}}, data_root=mirror, include_path=[str(own_tasks)])
    assert "declares nowhere to take few-shot examples from" in found


def test_humaneval_needs_one_permission(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's own; Hugging Face's metric, which asks for another in the environment, is replaced."""
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    found = problems(tasks={"humaneval": {}}, data_root=mirror)
    assert "suite.allow_code_execution=true" in found and "HF_ALLOW_CODE_EVAL" not in found
    preflight(suite_from_config({"tasks": {"humaneval": {}}, "data_root": mirror, "allow_code_execution": True}))


def test_missing_packages_are_named(mirror: Path, own_tasks: Path) -> None:
    (own_tasks / "scoring.py").write_text("from beside import x\n\ndef process_results(doc, results): ...\n")
    (own_tasks / "beside.py").write_text("def x():\n    import a_package_that_is_not_there.part\n")
    found = problems(tasks={"echo": {}}, data_root=mirror, include_path=[str(own_tasks)])
    assert "task 'echo' needs a_package_that_is_not_there; install with: pip install" in found


def test_lm_evals_own_math_tasks_need_another_antlr() -> None:
    """Hydra 1.3 works with antlr 4.9 only, which is therefore what is installed."""
    found = problems(tasks={"minerva_math500": {}})
    assert "insists on antlr4-python3-runtime 4.11" in found and "math_500" in found


def test_what_several_tasks_lack_is_said_once(own_tasks: Path, mirror: Path) -> None:
    (own_tasks / "other.yaml").write_text("include: program.yaml\ntask: other\n")
    found = problems(tasks={"program": {}, "other": {}}, data_root=mirror, include_path=[str(own_tasks)])
    assert "task 'program' runs code" in found and "task 'other' runs code" in found
    assert found.count("suite.allow_code_execution=true") == 1


def test_a_group_that_lacks_data_is_one_problem(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "empty")
    found = problems(tasks={"mmlu": {}}, data_root=mirror)
    assert "So or alike 55 more tasks of 'mmlu'." in found  # all but anatomy, which is there, and the first
    assert found.count("\n") == 1 and "graftbench data fetch" in found


def test_tasks_that_were_never_tried_on_real_data_are_named(mirror: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = {"gsm8k": {"verified": False}, "mmlu_anatomy": {}}
    preflight(suite_from_config({"tasks": tasks, "data_root": mirror}))
    assert "not yet verified on the real data, only on hand-made items with the same fields: gsm8k;" in caplog.text


def test_held_out_tasks_are_left_out_and_named(mirror: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = {"gsm8k": {"validation": {"hash": 0.5}}, "mmlu_anatomy": {"held_out": True}}
    with caplog.at_level("INFO"):
        preflight(suite_from_config({"tasks": tasks, "data_root": mirror, "split": "validation"}))
    assert "held out, so that hyper-parameters are chosen without them: mmlu_anatomy" in caplog.text
    only = suite_from_config({"tasks": {"gsm8k": {"held_out": True}}, "split": "validation", "name": "mine"})
    with pytest.raises(GraftbenchError, match="all tasks of suite 'mine' are held out"):
        preflight(only)
