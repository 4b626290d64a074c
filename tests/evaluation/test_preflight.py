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


def test_humanevals_own_scorer_needs_a_second_permission(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    found = problems(tasks={"humaneval": {}}, data_root=mirror, allow_code_execution=True)
    assert "outside of graftbench's sandbox" in found and "HF_ALLOW_CODE_EVAL=1" in found
