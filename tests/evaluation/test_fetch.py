"""Making a mirror, from data sets in the working folder, which the `datasets` library takes for the hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from harness.errors import GraftbenchError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.fetch import fetch, pieces
from harness.evaluation.suite import Suite, suite_from_config
from tests.evaluation.conftest import ScriptedEngine

TASKS: dict[str, Any] = {"gsm8k": {"num_fewshot": 2, "validation": {"hash": 0.2}}, "mmlu_anatomy": {}}


@pytest.fixture
def hub(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data sets of the fixture `mirror`, laid out as repositories, and no other hub."""
    from huggingface_hub import constants

    for repository, configuration, splits in (
        ("openai/gsm8k", "main", ("test", "train")),
        ("cais/mmlu", "anatomy", ("test", "dev")),
    ):
        files = "".join(f"  - {{split: {split}, path: {configuration}/{split}.jsonl}}\n" for split in splits)
        text = f"---\nconfigs:\n- config_name: {configuration}\n  data_files:\n{files}---\n"
        (mirror / repository / "README.md").write_text(text)
    monkeypatch.chdir(mirror)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return mirror


def suite_of(**tasks: Any) -> Suite:
    return suite_from_config({"tasks": tasks})


def test_a_suite_runs_from_the_mirror_as_from_the_hub(hub: Path, tmp_path: Path) -> None:
    root = tmp_path / "fetched"
    written, present = fetch(suite_of(**TASKS), root)
    assert [str(path.relative_to(root)) for path in written] == [
        "openai/gsm8k/main/test.parquet",
        "openai/gsm8k/main/train.parquet",
        "cais/mmlu/anatomy/test.parquet",
    ]
    assert present == 0
    tasks = {"gsm8k": {"num_fewshot": 2}, "mmlu_anatomy": {}}
    from_hub = evaluate("anything", suite_of(**tasks), ScriptedEngine({}))
    from_mirror = evaluate("anything", suite_from_config({"tasks": tasks, "data_root": root}), ScriptedEngine({}))
    assert [task.item_ids for task in from_mirror.tasks] == [task.item_ids for task in from_hub.tasks]
    assert from_mirror.answers.column("prompt") == from_hub.answers.column("prompt")


def test_what_is_there_is_not_fetched_again(hub: Path, tmp_path: Path) -> None:
    root = tmp_path / "fetched"
    fetch(suite_of(gsm8k={}), root)
    (root / "openai/gsm8k/main/train.parquet").unlink()
    written, present = fetch(suite_of(**TASKS), root)
    assert ([path.name for path in written], present) == (["train.parquet", "test.parquet"], 1)
    assert fetch(suite_of(**TASKS), root) == ([], 3)


def test_a_mirror_of_json_lines_stays_one(hub: Path, tmp_path: Path) -> None:
    root = tmp_path / "fetched"
    (root / "openai/gsm8k/main").mkdir(parents=True)
    there = hub / "openai/gsm8k/main/test.jsonl"
    (root / "openai/gsm8k/main/test.jsonl").write_bytes(there.read_bytes())
    written, _ = fetch(suite_of(gsm8k={}), root)
    assert [path.name for path in written] == ["train.jsonl"]
    assert len(written[0].read_text().splitlines()) == 6


def test_validation_splits_are_fetched_too(tmp_path: Path) -> None:
    suite = suite_of(mmlu_anatomy={"num_fewshot": 5, "validation": {"split": "validation"}}, arc_easy={}, mbpp={})
    assert [str(piece) for piece in pieces(suite, tmp_path)] == [
        "cais/mmlu/anatomy/dev",
        "cais/mmlu/anatomy/test",
        "cais/mmlu/anatomy/validation",
        "allenai/ai2_arc/ARC-Easy/test",
        "allenai/ai2_arc/ARC-Easy/validation",
        "google-research-datasets/mbpp/full/test",
    ]
    held_out = suite_of(arc_easy={"held_out": True})
    assert [piece.split for piece in pieces(held_out, tmp_path)] == ["test"]


def test_the_data_of_the_zoo_are_not_the_hubs(tmp_path: Path) -> None:
    assert pieces(suite_of(tiny_math={}), tmp_path) == []


def test_unknown_tasks_are_named_all_at_once_before_anything_is_fetched(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError) as caught:
        fetch(suite_of(gsm8k={}, gsm8kk={}, mmlu_anatomie={}), tmp_path / "fetched")
    assert "did you mean 'gsm8k'" in str(caught.value) and "mmlu_anatomy" in str(caught.value)
    assert not (tmp_path / "fetched").exists()


def test_all_that_could_not_be_fetched_is_named_after_the_rest_was(hub: Path, tmp_path: Path) -> None:
    root = tmp_path / "fetched"
    with pytest.raises(GraftbenchError) as caught:
        fetch(suite_of(mmlu_anatomy={"validation": {"split": "val"}}, mmlu_astronomy={}, gsm8k={}), root)
    message = str(caught.value)
    assert "2 of 5 splits could not be fetched" in message
    assert "cais/mmlu/astronomy/test: " in message and "cais/mmlu/anatomy/val: " in message
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*.parquet"))]
    assert names == ["cais/mmlu/anatomy/test.parquet", *(f"openai/gsm8k/main/{n}.parquet" for n in ("test", "train"))]
    assert not list(root.rglob("*.partial"))


def test_without_a_network_it_says_so_once(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match="the hub cannot be reached") as caught:
        fetch(suite_of(mmlu_anatomy={}, mmlu_astronomy={}, arc_easy={}), tmp_path / "fetched")
    assert "still missing, the next is" in str(caught.value)
    assert "it goes on from here" in str(caught.value)
