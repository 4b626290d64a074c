"""Items of a suite in training data, on texts whose overlaps can be counted by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import GraftbenchError
from harness.evaluation.decontamination import overlaps
from harness.evaluation.suite import Suite, suite_from_config

QUESTIONS = (
    "Ann has ten pears, and she buys three more at the market. How many pears has she now?",
    "A train leaves the station at noon, and goes at sixty miles an hour. Where is it at two?",
    "How many legs has a dog?",
)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    folder = tmp_path / "mirror" / "openai" / "gsm8k" / "main"
    folder.mkdir(parents=True)
    lines = [json.dumps({"question": question, "answer": "#### 4"}) + "\n" for question in QUESTIONS]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    config = {"name": "one", "data_root": str(tmp_path / "mirror"), "tasks": {"gsm8k": {"num_fewshot": 0}}}
    return suite_from_config(config)


def written(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_copied_question_is_found_whatever_its_case_and_punctuation(suite: Suite, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Tell me: " + QUESTIONS[1].upper().replace(",", " --")}]}
    data = written(tmp_path, {"prompt": "Something else entirely.", "answer": "Yes."}, chat)
    (task,) = overlaps(suite, data)
    assert (task.task, task.items, task.comparable) == ("gsm8k", 3, 2), "six words are too few to be looked for"
    assert [(found.item, found.line) for found in task.overlaps] == [(1, 2)]
    assert task.overlaps[0].words == "a train leaves the station at noon and goes at sixty miles an"


@pytest.mark.parametrize(("words", "found"), [(12, [0]), (13, [])])
def test_one_word_less_than_asked_for_is_no_overlap(suite: Suite, tmp_path: Path, words: int, found: list[int]) -> None:
    twelve = "Ann has ten pears and she buys three more at the market"
    (task,) = overlaps(suite, written(tmp_path, {"text": f"{twelve}, he said"}), words)
    assert [each.item for each in task.overlaps] == found


def test_texts_of_a_line_are_not_strung_together(suite: Suite, tmp_path: Path) -> None:
    first, second = QUESTIONS[0][:40], QUESTIONS[0][40:]
    (task,) = overlaps(suite, written(tmp_path, {"prompt": first, "answer": second}))
    assert task.overlaps == ()


def test_a_line_that_is_no_json_is_named(suite: Suite, tmp_path: Path) -> None:
    data = written(tmp_path, {"text": "fine"})
    with data.open("a", encoding="utf-8") as file:
        file.write("{text: no}\n")
    with pytest.raises(GraftbenchError, match=r"chats\.jsonl: line 2 is no JSON"):
        overlaps(suite, data)


def test_the_command_counts_and_writes_a_report(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {"text": QUESTIONS[0]})
    options = ["suite=custom", "suite.tasks={gsm8k:{num_fewshot:0}}", f"suite.data_root={suite.data_root}"]
    main(["zoo", "decontaminate", "data=chats.jsonl", "report=found.json", f"home={tmp_path / 'home'}", *options])
    report = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [(found["item"], found["line"]) for found in report["tasks"][0]["overlaps"]] == [(0, 1)]
    assert "gsm8k, item 0, line 1: ann has ten pears" in capsys.readouterr().out
