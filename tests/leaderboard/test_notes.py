"""What a board says of how its records were made."""

from dataclasses import replace
from typing import Any

from harness.leaderboard.notes import evaluation_notes
from harness.results import Record
from tests.leaderboard.conftest import MakeRecord


def notes(*records: Record) -> list[str]:
    return evaluation_notes(records, {record.key: record.label for record in records})


def with_task(record: Record, **fields: Any) -> Record:
    return replace(record, tasks=tuple(replace(task, **fields) for task in record.tasks))


def test_rows_made_alike_need_no_word(make_record: MakeRecord) -> None:
    alike = {"circumstances": {"model": {"dtype": "float32"}, "sandbox": "whole"}}
    ties, dare = (make_record(name, {"math": [1, 0]}, **alike) for name in ("ties", "dare"))
    assert notes(ties, dare) == []
    assert notes(*(with_task(each, prompts="p" * 64) for each in (ties, dare))) == []


def test_cut_off_answers_are_told_from_a_tenth_on(make_record: MakeRecord) -> None:
    ties, dare = (make_record(name, {"math": [0] * 20}) for name in ("ties", "dare"))
    told = notes(
        with_task(ties, counts={"empty": 0, "truncated": 2}), with_task(dare, counts={"empty": 9, "truncated": 1})
    )
    assert told == ["Answers to tiny_math that ran into the limit of new tokens and may be cut off: ties 10%."]


def test_answers_are_counted_by_sample(make_record: MakeRecord) -> None:
    suite = {"name": "tiny", "split": "test", "digest": "d", "tasks": {"tiny_code": {"repeats": 4}}}
    record = with_task(make_record("ties", {"code": [0] * 5}, suite=suite), counts={"empty": 0, "truncated": 5})
    assert notes(record)[0].endswith("ties 25%.")


def test_other_prompts_formats_and_sandboxes_are_told(make_record: MakeRecord) -> None:
    ties = make_record("ties", {"math": [1]}, circumstances={"model": {"dtype": "float32"}, "sandbox": "whole"})
    dare = make_record("dare", {"math": [1]}, circumstances={"model": {"dtype": "bfloat16"}, "sandbox": "hook alone"})
    told = notes(with_task(ties, prompts="1" * 64), with_task(dare, prompts="2" * 64))
    assert told == [
        "Rows were asked different prompts in tiny_math: 111111111111 (ties); 222222222222 (dare).",
        "Rows were computed in different number formats: bfloat16 (dare); float32 (ties).",
        "Rows ran model-written code in different sandboxes: hook alone (dare); whole (ties).",
    ]


def test_records_of_the_first_format_are_passed_over(make_record: MakeRecord) -> None:
    new = make_record("ties", {"math": [1]}, circumstances={"model": {"dtype": "float32"}, "sandbox": "whole"})
    assert notes(with_task(new, prompts="1" * 64), make_record("dare", {"math": [1]})) == []
