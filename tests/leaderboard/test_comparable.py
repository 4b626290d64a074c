"""Records that were not made under the same conditions are never ranked together, and the reason is named."""

from dataclasses import replace
from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.leaderboard import build_board
from harness.results import Record


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"suite": {"name": "tiny", "split": "validation", "digest": "suite-digest"}},
            "split.*validation.*test",
        ),
        (
            {"suite": {"name": "tiny", "split": "test", "digest": "other"}},
            "suite digest.*other.*suite-digest",
        ),
        ({"zoo": {"name": "tiny", "digest": "retrained"}}, "zoo digest.*retrained.*zoo-digest"),
        (
            {"engine": {"name": "hf", "dtype": "bfloat16", "batch_size": 64}},
            r"their engine .*: record 'ties' \(key-method-t\) has dtype=bfloat16 \(the others float32\);",
        ),
        ({"zoo": {"name": "tiny"}}, "record 'ties'.*no zoo digest"),
    ],
)
def test_different_conditions_are_refused(board_records: list[Record], change: dict[str, Any], reason: str) -> None:
    mixed = [replace(record, **change) if record.label == "ties" else record for record in board_records]
    with pytest.raises(GraftbenchError, match=reason) as caught:
        build_board(mixed)
    assert "'ties'" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(GraftbenchError, match=reason):
        build_board(mixed[::-1])


def test_the_setting_in_which_suites_differ_is_named(board_records: list[Record]) -> None:
    def suite(digest: str, version: str, **more: Any) -> dict[str, Any]:
        return {"name": "tiny", "split": "test", "digest": digest, "tasks": {"tiny_math": {"version": version}, **more}}

    records = [replace(record, suite=suite("a" * 64, "1.0")) for record in board_records]
    records[5] = replace(records[5], suite=suite("b" * 64, "2.0"))
    with pytest.raises(GraftbenchError, match=r"'ties'.* \(tasks.tiny_math.version=2.0, the others 1.0\); choose one"):
        build_board(records)
    others = {f"task {number}": {"version": "1.0"} for number in range(5)}
    records[5] = replace(records[5], suite=suite("b" * 64, "1.0", **others))
    with pytest.raises(GraftbenchError, match=r"tasks.task 0.version=1.0, the others none; .*; and 2 more\)"):
        build_board(records)


def test_items_in_two_clusters_are_refused(board_records: list[Record]) -> None:
    def clustered(record: Record, name: str) -> Record:
        tasks = [replace(task, clusters=(f"{task.task} {name}",) * 2 + task.item_ids[2:]) for task in record.tasks]
        return replace(record, tasks=tuple(tasks))

    same = [clustered(record, "passage") if record.role == "method" else record for record in board_records]
    assert build_board(same).tasks["tiny_math"]["clusters"] == 299
    same[5] = clustered(board_records[5], "another")
    with pytest.raises(GraftbenchError, match="puts the item 'math-00000' into the cluster 'tiny_math another'"):
        build_board(same)


def test_missing_items_name_the_record(board_records: list[Record]) -> None:
    first, *others = board_records[4].tasks
    shorter = replace(first, item_ids=first.item_ids[2:], outcomes=first.outcomes[2:])
    records = [*board_records[:4], replace(board_records[4], tasks=(shorter, *others)), *board_records[5:]]
    expected = r"record 'linear' .* lacks 2 of 300 items \(such as 'math-00000'\) in the task 'tiny_math'"
    with pytest.raises(GraftbenchError, match=expected):
        build_board(records)


def test_other_items_name_the_record(board_records: list[Record]) -> None:
    first, *others = board_records[4].tasks
    renamed = replace(first, item_ids=("new", *first.item_ids[1:]))
    records = [*board_records[:4], replace(board_records[4], tasks=(renamed, *others)), *board_records[5:]]
    with pytest.raises(GraftbenchError, match=r"lacks 1 of 300.*has beyond the others 1 .*'new'"):
        build_board(records)


def test_missing_tasks_name_the_record(board_records: list[Record]) -> None:
    partial = replace(board_records[5], tasks=board_records[5].tasks[:1])
    with pytest.raises(GraftbenchError, match=r"'ties'.*tiny_math.*instead of.*tiny_code"):
        build_board([*board_records[:5], partial, *board_records[6:]])


def test_another_metric_names_the_record(board_records: list[Record]) -> None:
    tasks = tuple(replace(task, metric="acc_norm,none") for task in board_records[5].tasks)
    with pytest.raises(GraftbenchError, match=r"'ties'.*tiny_math.*acc,none"):
        build_board([*board_records[:5], replace(board_records[5], tasks=tasks), *board_records[6:]])
