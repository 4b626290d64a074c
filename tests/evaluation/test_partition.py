"""Validation items by a hash of the item."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness.errors import GraftbenchError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.fingerprint import fingerprint
from harness.evaluation.partition import Partition, fraction_of
from harness.evaluation.plan import plan_suite
from harness.evaluation.suite import suite_from_config
from tests.evaluation.conftest import ScriptedEngine, write_items

ITEMS: list[dict[str, Any]] = [
    {"question": f"What is {n} plus {n}?", "answer": f"#### {2 * n}"} for n in range(100, 300)
]


def test_the_fraction_is_the_sha256_of_the_item_as_json() -> None:
    digest = hashlib.sha256(b'{"a":1,"b":"x"}').hexdigest()
    assert fraction_of({"b": "x", "a": 1}) == int(digest[:16], 16) / 2**64


def test_fields_without_a_value_do_not_count() -> None:
    """The hub's parquet files fill in what JSON lines leave out."""
    assert fraction_of({"kwargs": [{"words": 3, "lines": None}], "x": None}) == fraction_of({"kwargs": [{"words": 3}]})
    assert fraction_of({"kwargs": [{"words": 3}]}) != fraction_of({"kwargs": [{"words": 4}]})


def test_the_parts_share_no_item_and_leave_none_out() -> None:
    validation = [item for item in ITEMS if Partition(0.2, validation=True).holds(item)]
    test = [item for item in ITEMS if Partition(0.2, validation=False).holds(item)]
    assert len(validation) + len(test) == len(ITEMS)
    assert 20 <= len(validation) <= 60  # 40 expected of 200; five standard deviations are 28
    assert not [item for item in validation if item in test]


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    item = next(item for item in ITEMS if fraction_of(item) > 0.5)
    with pytest.raises(GraftbenchError, match="none of the 1 items belongs to the validation part"):
        Partition(0.2, validation=True).write(datasets.Dataset.from_list([item]), tmp_path / "x.parquet")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    root = tmp_path / "sums"
    write_items(root / "openai/gsm8k/main/test.jsonl", ITEMS[:40])
    write_items(root / "openai/gsm8k/main/train.jsonl", ITEMS[40:60])
    return root


def asked(root: Path, split: str, **task: Any) -> set[str]:
    """The ids of the items that are asked, all answered."""
    config = {"tasks": {"gsm8k": {"validation": {"hash": 0.2}, **task}}, "data_root": root, "split": split}
    engine = ScriptedEngine({item["question"]: item["answer"] for item in ITEMS})
    (outcome,) = evaluate("anything", suite_from_config(config), engine).tasks
    assert outcome.score == 100.0
    assert all(prompt.count("Question:") == 6 for prompt in engine.model.prompts)
    return set(outcome.item_ids)


def test_test_and_validation_are_the_two_parts(sums: Path) -> None:
    validation, test = asked(sums, "validation"), asked(sums, "test")
    assert len(validation) == sum(fraction_of(item) < 0.2 for item in ITEMS[:40]) > 0
    assert len(test) == 40 - len(validation)
    assert not validation & test


def test_the_part_does_not_depend_on_the_format(sums: Path, tmp_path: Path) -> None:
    for split in ("test", "train"):
        items = [json.loads(line) for line in (sums / f"openai/gsm8k/main/{split}.jsonl").read_text().splitlines()]
        folder = tmp_path / "parquet/openai/gsm8k/main"
        folder.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(items).to_parquet(str(folder / f"{split}.parquet"))
    assert asked(tmp_path / "parquet", "validation") == asked(sums, "validation")


def test_data_that_the_library_loads_are_parted_too(
    sums: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the working folder holds a data set of that name, the `datasets` library takes it for one of the hub."""
    from_mirror = asked(sums, "validation")
    (sums / "openai/gsm8k/README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - {split: test, path: main/test.jsonl}\n  - {split: train, path: main/train.jsonl}\n---\n"
    )
    monkeypatch.chdir(sums)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = {"tasks": {"gsm8k": {"validation": {"hash": 0.2}}}, "split": "validation"}
    (outcome,) = evaluate("anything", suite_from_config(config), ScriptedEngine({})).tasks
    assert set(outcome.item_ids) == from_mirror


def test_another_split_may_be_named(mirror: Path, own_tasks: Path) -> None:
    config = {"data_root": mirror, "include_path": [str(own_tasks)], "split": "validation"}
    (plan,), _ = plan_suite(suite_from_config({**config, "tasks": {"echo": {"validation": {"split": "validation"}}}}))
    assert (plan.split, plan.partition) == ("validation", None)
    _, (problem,) = plan_suite(suite_from_config({**config, "tasks": {"echo": {"validation": {"split": "test"}}}}))
    assert "its validation items must be others" in problem


def test_the_part_is_in_the_fingerprint(sums: Path) -> None:
    def of(split: str, share: float) -> Any:
        config = {"tasks": {"gsm8k": {"validation": {"hash": share}}}, "data_root": sums, "split": split}
        return fingerprint(suite_from_config(config))["tasks"]["gsm8k"]["partition"]

    assert of("test", 0.2) == {"rule": "sha256", "share": 0.2, "part": "test"}
    assert of("validation", 0.3) == {"rule": "sha256", "share": 0.3, "part": "validation"}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"validation": {"hash": 1.5}}, "validation.hash is 1.5; it is a share"),
        ({"validation": {"hush": 0.2}}, r"it takes \{hash: 0.2\} or \{split: NAME\}"),
        ({"validation": {"hash": 0.2}, "held_out": True}, "is held out, so that it has no validation items"),
        ({"validation": 0.2}, "validation is 0.2; it takes settings"),
        ({"held_out": "yes"}, "held_out is yes; it must be true or false"),
    ],
)
def test_bad_settings_are_named(task: dict[str, Any], message: str) -> None:
    with pytest.raises(GraftbenchError, match=message):
        suite_from_config({"tasks": {"gsm8k": task}})
