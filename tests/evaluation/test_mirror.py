"""Data sets in a folder: formats, and splits of several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.fingerprint import fingerprint
from harness.evaluation.mirror import data_in
from harness.evaluation.suite import suite_from_config
from tests.evaluation.conftest import ScriptedEngine, write_items


def test_a_split_may_lie_in_several_files(mirror: Path) -> None:
    whole = mirror / "openai/gsm8k/main/test.jsonl"
    suite = suite_from_config({"tasks": {"gsm8k": {}}, "data_root": mirror})
    before = evaluate("anything", suite, ScriptedEngine({})).tasks[0]
    digest = fingerprint(suite)["tasks"]["gsm8k"]["data"]["test"]
    lines = whole.read_text().splitlines(keepends=True)
    for number, part in enumerate((lines[:1], lines[1:])):
        (whole.parent / f"test-{number:05d}-of-00002.jsonl").write_text("".join(part))
    whole.unlink()
    after = evaluate("anything", suite, ScriptedEngine({})).tasks[0]
    assert after.item_ids == before.item_ids
    changed = fingerprint(suite)["tasks"]["gsm8k"]["data"]["test"]
    assert changed != digest  # other files, so another key
    with (whole.parent / "test-00001-of-00002.jsonl").open("a") as file:
        file.write("\n")
    assert fingerprint(suite)["tasks"]["gsm8k"]["data"]["test"] != changed


@pytest.mark.parametrize(
    "names",
    [
        ["test-00000-of-00002.jsonl"],
        ["test-00000-of-00002.jsonl", "test-00001-of-00003.jsonl"],
        ["test.jsonl", "test-00000-of-00001.jsonl"],
    ],
)
def test_a_split_that_lacks_files_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_items(tmp_path / name, [{"a": 1}])
    with pytest.raises(GraftbenchError, match="the split 'test' is not whole"):
        data_in(tmp_path)


def test_two_formats_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_items(tmp_path / "test.jsonl", [{"a": 1}])
    (tmp_path / "train.parquet").touch()
    with pytest.raises(GraftbenchError, match=r"both .jsonl and .parquet"):
        data_in(tmp_path)


def test_unfinished_files_are_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".test.parquet.x.partial").touch()
    (tmp_path / ".test.parquet").touch()
    assert data_in(tmp_path) is None
