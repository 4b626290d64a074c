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
