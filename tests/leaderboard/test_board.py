"""The board: order, ranks, ties, retention, and what it refuses."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from harness.errors import GraftbenchError
from harness.leaderboard import Board, Row, build_board
from harness.results import Record

MakeRecord = Callable[..., Record]


def row(board: Board, label: str, role: str = "method") -> Row:
    return next(row for row in board.group(role) if row.label == label)


def alternating(score: int, items: int = 100) -> list[float]:
    """Outcomes of which `score` in a hundred are right, spread over the items."""
    return [float((position * 37) % 100 < score) for position in range(items)]


def test_scores_are_the_records_own(board_records: list[Record]) -> None:
    board = build_board(board_records)
    for record in board_records:
        built = next(row for row in board.rows if row.key == record.key)
        assert built.average.value == pytest.approx(record.objective())
        for capability, score in record.capability_scores().items():
            assert built.capabilities[capability].value == pytest.approx(score)
            interval = built.capabilities[capability].interval
            assert interval is not None
            assert interval.low < score < interval.high


def test_a_capability_counts_once_however_many_tasks_it_has(make_record: MakeRecord) -> None:
    three = make_record("ties", {"math": alternating(90), "algebra": alternating(70), "code": alternating(40)})
    tasks = tuple(replace(t, capability="math") if t.capability == "algebra" else t for t in three.tasks)
    record = replace(three, tasks=tasks)
    board = build_board([record])
    built = row(board, "ties")
    assert {c: estimate.value for c, estimate in built.capabilities.items()} == pytest.approx({"math": 80, "code": 40})
    assert built.average.value == pytest.approx(60.0) == record.objective()
    lows = [binomtest(score, 100).proportion_ci(method="wilson").low for score in (90, 70, 40)]
    below = np.array([0.9, 0.7, 0.4]) - np.array(lows)
    assert built.average.interval is not None
    expected = 60 - 100 * np.sqrt(((np.array([0.25, 0.25, 0.5]) * below) ** 2).sum())
    assert built.average.interval.low == pytest.approx(expected)


def test_methods_are_ranked_by_average_and_nothing_else_is(board_records: list[Record]) -> None:
    board = build_board(board_records)
    methods = board.group("method")
    averages = [row.average.value for row in methods]
    assert averages == sorted(averages, key=lambda value: -(value or 0))
    assert [row.rank for row in methods] == [1, 2, 3]
    assert all(row.rank is None for row in board.rows if row.role != "method")
    assert [row.role for row in board.rows] == [
        "method", "method", "method", "control", "reference", "expert", "expert", "base",
    ]  # fmt: skip
    assert board.best == methods[0].label
    assert board.capabilities == ("math", "code")


def test_the_best_is_a_method_even_where_the_reference_scores_higher(board_records: list[Record]) -> None:
    board = build_board(board_records)
    reference = board.group("reference")[0]
    assert board.best != "multitask"
    assert reference.difference_to_best.value is not None
    assert reference.difference_to_best.value > 0
    assert reference.tied_with_best is False


def test_close_methods_are_tied_and_a_much_worse_one_and_a_control_are_not(
    board_records: list[Record],
) -> None:
    board = build_board(board_records)
    assert row(board, "ties").tied_with_best
    assert row(board, "ota_ffg").tied_with_best
    assert row(board, "linear").tied_with_best is False
    assert row(board, "ota_ffg_shuffled", "control").tied_with_best is False
    worse = row(board, "linear").difference_to_best
    assert worse.interval is not None
    assert worse.interval.low < (worse.value or 0) < worse.interval.high < 0


def test_identical_rows_share_the_rank_and_are_tied_with_the_best(make_record: MakeRecord) -> None:
    graded = [value / 7 for value in range(8)] * 20
    outcomes = {"math": graded, "code": alternating(60)}
    board = build_board([make_record(name, outcomes) for name in ("b", "a", "c")])
    assert [(row.label, row.rank) for row in board.rows] == [("a", 1), ("b", 1), ("c", 1)]
    assert all(row.tied_with_best for row in board.rows)
    assert all(row.difference_to_best.value == pytest.approx(0.0) for row in board.rows)
    assert board.smallest_detectable_difference is None


def test_a_model_that_fails_everything_is_told_apart_from_one_that_solves_everything(
    make_record: MakeRecord,
) -> None:
    board = build_board([make_record("good", {"math": [1.0] * 50}), make_record("bad", {"math": [0.0] * 50})])
    assert [(row.label, row.tied_with_best) for row in board.rows] == [("good", True), ("bad", False)]


def test_five_items_tell_nothing_apart(make_record: MakeRecord) -> None:
    board = build_board([make_record("good", {"math": [1.0] * 5}), make_record("bad", {"math": [0.0] * 5})])
    assert row(board, "bad").tied_with_best


def test_the_board_does_not_depend_on_the_order_of_records_or_items(board_records: list[Record]) -> None:
    board = build_board(board_records)
    shuffler = random.Random(2)
    for _ in range(3):
        shuffled = [shuffle_items(record, shuffler) for record in board_records]
        shuffler.shuffle(shuffled)
        assert build_board(shuffled) == board


def shuffle_items(record: Record, shuffler: random.Random) -> Record:
    tasks = []
    for task in record.tasks:
        pairs = list(zip(task.item_ids, task.outcomes, strict=True))
        shuffler.shuffle(pairs)
        ids, outcomes = zip(*pairs, strict=True)
        tasks.append(replace(task, item_ids=ids, outcomes=outcomes))
    return replace(record, tasks=tuple(tasks))


def test_another_row_changes_no_other_rows_numbers(board_records: list[Record]) -> None:
    whole = build_board(board_records)
    fewer = build_board([record for record in board_records if record.label != "linear"])
    assert [row for row in whole.rows if row.label != "linear"] == list(fewer.rows)


def test_a_repeated_record_has_one_row(board_records: list[Record]) -> None:
    again = replace(board_records[4], timings={"merge": 99.0})
    assert build_board([*board_records, again]) == build_board(board_records)
    assert build_board([again, *board_records]) == build_board(board_records)


def test_one_key_with_two_outcomes_is_refused(make_record: MakeRecord) -> None:
    first = make_record("ties", {"math": [1.0, 0.0]})
    with pytest.raises(GraftbenchError, match=r"key-method-ties.*different outcomes"):
        build_board([first, make_record("ties", {"math": [0.0, 1.0]})])


def test_rows_of_one_label_are_told_apart_by_their_hyper_parameters(make_record: MakeRecord) -> None:
    records = [
        make_record("ties", {"math": alternating(score)}, key=f"k{density}", recipe=recipe)
        for score, density in ((50, 0.2), (60, 0.4))
        for recipe in [{"hyperparameters": {"density": density, "scale": 1.0}, "source": str(score) * 32}]
    ]
    assert [row.label for row in build_board(records).rows] == ["ties (density=0.4)", "ties (density=0.2)"]
    same = [replace(record, recipe={"source": record.recipe["source"]}) for record in records]
    assert [row.label for row in build_board(same).rows] == ["ties (k0.4)", "ties (k0.2)"]


def test_retention_is_relative_to_each_capabilitys_own_expert(make_record: MakeRecord) -> None:
    board = build_board(
        [
            make_record("math", {"math": alternating(90), "code": alternating(40)}, "expert", 0.25, capability="math"),
            make_record("code", {"math": alternating(45), "code": alternating(75)}, "expert", 0.25, capability="code"),
            make_record("linear", {"math": alternating(51), "code": alternating(65)}, chance=0.25),
        ]
    )
    linear = row(board, "linear")
    assert linear.capability_retention["math"].value == pytest.approx(100 * 26 / 65)
    assert linear.capability_retention["code"].value == pytest.approx(100 * 40 / 50)
    assert linear.retention.value == pytest.approx(60.0)
    interval = linear.retention.interval
    assert interval is not None
    assert interval.low < 60.0 < interval.high
    own = row(board, "math", "expert").capability_retention["math"]
    assert (own.value, own.interval) == (100.0, pytest.approx(own.interval))
    assert own.interval is not None
    assert own.interval.low == own.interval.high == 100.0


def test_retention_interval_agrees_with_the_delta_method(make_record: MakeRecord) -> None:
    generator = np.random.default_rng(4)
    difficulty = generator.random(800)
    expert, merged = ((0.8 * difficulty + 0.2 * generator.random(800) < a).astype(float) for a in (0.85, 0.6))
    board = build_board(
        [
            make_record("math", {"math": expert}, "expert", capability="math"),
            make_record("ties", {"math": merged}),
        ]
    )
    ratio = merged.mean() / expert.mean()
    error = (merged - ratio * expert).std(ddof=1) / np.sqrt(800) / expert.mean()
    interval = row(board, "ties").retention.interval
    assert interval is not None
    assert interval.half_width == pytest.approx(100 * 1.96 * error, rel=0.06)


def test_without_an_expert_or_base_retention_is_blank_with_its_reason(board_records: list[Record]) -> None:
    board = build_board([record for record in board_records if record.label not in ("code", "base")])
    linear = row(board, "linear")
    assert linear.retention.value is None
    assert linear.retention.reason == "0 experts of code instead of one"
    assert linear.capability_retention["math"].value is not None
    assert any("base model has no row" in note for note in board.notes)
    assert any("No retention of code" in note for note in board.notes)
    assert build_board(board_records).notes == ()


def test_two_experts_of_one_capability_give_no_retention(board_records: list[Record]) -> None:
    second = replace(board_records[1], key="another", label="math2")
    board = build_board([*board_records, second])
    assert row(board, "ties").retention.reason == "2 experts of math instead of one"
    assert any("No retention of math, " in note for note in board.notes)


def test_an_expert_at_chance_gives_no_retention(make_record: MakeRecord) -> None:
    board = build_board(
        [
            make_record("math", {"math": alternating(27)}, "expert", chance=0.25, capability="math"),
            make_record("ties", {"math": alternating(50)}, chance=0.25),
        ]
    )
    assert "not clearly above chance" in str(row(board, "ties").retention.reason)


def test_a_board_without_methods_has_no_best(board_records: list[Record]) -> None:
    board = build_board([record for record in board_records if record.role != "method"])
    assert board.best is None
    assert board.smallest_detectable_difference is None
    assert all(row.tied_with_best is None and row.difference_to_best.value is None for row in board.rows)


def test_hyper_parameters_tuned_on_test_items_cost_the_rank(board_records: list[Record]) -> None:
    tuned = [
        replace(record, selection={"how": "tuned", "trials": 5, "split": "test"}) if record.label == "ties" else record
        for record in board_records
    ]
    board = build_board(tuned)
    assert row(board, "ties").rank is None
    assert row(board, "ties").chosen == "tuned (5 trials, test)"
    assert board.best == "ota_ffg"
    assert row(board, "linear").rank == 2
    assert any("chosen on test items: ties" in note for note in board.notes)


def test_rows_say_how_they_were_tuned_and_what_the_merge_took(make_record: MakeRecord) -> None:
    selection = {"how": "tuned", "trials": 25, "split": "validation"}
    board = build_board(
        [
            make_record("ties", {"math": alternating(50)}, selection=selection),
            make_record("given", {"math": alternating(40)}, selection={"how": "given", "trials": None, "split": None}),
            make_record("base", {"math": alternating(30)}, "base"),
        ]
    )
    assert [row.chosen for row in board.rows] == ["tuned (25 trials, validation)", "given", ""]
    assert [row.merge_seconds for row in board.rows] == [1.25, 1.25, None]


def test_different_versions_are_named_in_a_note(board_records: list[Record]) -> None:
    other = replace(board_records[5], versions={"torch": "2.14.0"})
    board = build_board([*board_records[:5], other, *board_records[6:]])
    assert any("torch" in note and "2.14.0 (ties)" in note for note in board.notes)


def test_the_smallest_detectable_difference_follows_from_the_paired_standard_error(
    make_record: MakeRecord,
) -> None:
    best, other = alternating(60, 400), alternating(60, 400)
    for position in range(0, 400, 10):  # one item in ten differs, half of them either way
        other[position] = 1.0 - other[position]
    board = build_board([make_record("a", {"math": best}), make_record("b", {"math": other})])
    difference = np.array(best) - np.array(other)
    error = np.sqrt((0.1 - difference.mean() ** 2) / 399)
    assert board.smallest_detectable_difference == pytest.approx(100 * 2.8016 * error, rel=1e-3)


def test_no_records_make_no_board() -> None:
    with pytest.raises(GraftbenchError, match="no records"):
        build_board([])
