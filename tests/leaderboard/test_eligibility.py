"""Which methods are ranked: tuned in as many trials as the others, never on test items."""

from collections.abc import Callable
from typing import Any

import pytest

from harness.leaderboard import build_board
from harness.leaderboard.eligibility import how_chosen
from harness.results import Record

MakeRecord = Callable[..., Record]


def tuned(trials: int | None, split: str = "validation") -> dict[str, Any]:
    return {"how": "tuned", "trials": trials, "split": split}


@pytest.mark.parametrize(
    ("selections", "reasons"),
    [
        ({"a": tuned(9), "b": tuned(9), "c": {"how": "default"}, "d": {"how": "published"}}, {}),
        ({"a": tuned(5), "b": tuned(9), "c": tuned(9)}, {"a": "tuned with 5 trials, others with 9"}),
        ({"a": tuned(25), "b": tuned(9), "c": tuned(9)}, {"a": "tuned with 25 trials, others with 9"}),
        ({"a": tuned(9), "b": tuned(5)}, {"b": "tuned with 5 trials, others with 9"}),
        ({"a": tuned(None), "b": tuned(9)}, {"a": "tuned with an unknown number of trials, others with 9"}),
        (
            {"a": tuned(9), "b": tuned(5, "test"), "c": tuned(5, "test")},
            dict.fromkeys("bc", "the hyper-parameters were chosen on test items"),
        ),
    ],
)
def test_methods_are_set_aside_with_the_reason(
    make_record: MakeRecord, selections: dict[str, dict[str, Any]], reasons: dict[str, str]
) -> None:
    records = [
        make_record(label, {"math": [float(position % 7 > place) for position in range(70)]}, selection=selection)
        for place, (label, selection) in enumerate(selections.items())
    ]
    board = build_board(records)
    assert {row.label: row.unranked for row in board.rows if row.unranked} == reasons
    ranked = [label for label in selections if label not in reasons]
    assert [(row.label, row.rank) for row in board.rows if row.rank] == [
        (name, place + 1) for place, name in enumerate(ranked)
    ]
    assert board.best == ranked[0]
    for reason in set(reasons.values()):
        names = ", ".join(label for label in reasons if reasons[label] == reason)
        assert f"Not ranked, since {reason}: {names}." in board.notes


def test_a_row_that_is_set_aside_is_compared_but_is_in_no_family(make_record: MakeRecord) -> None:
    def record(label: str, right: int, **fields: Any) -> Record:
        return make_record(label, {"math": [float(position < right) for position in range(100)]}, **fields)

    records = [record("a", 80), record("b", 70), record("c", 60, selection=tuned(5, "test"))]
    board = build_board([*records, record("base", 30, role="base")])
    rows = {row.label: row for row in board.rows}
    assert rows["b"].corrected_p_value == rows["b"].p_value == pytest.approx(2.0**-9)
    assert rows["c"].corrected_p_value is None
    assert rows["c"].p_value == pytest.approx(2.0**-19)
    assert rows["base"].corrected_p_value is None
    assert [(pair.first, pair.second) for pair in board.comparisons] == [("a", "b")]


def test_a_choice_in_a_few_words() -> None:
    assert how_chosen(tuned(9)) == "tuned (9 trials, validation)"
    assert how_chosen({"how": "published", "source": "a paper"}) == "published"
    assert how_chosen({"how": "given", "trials": None}) == "given"
    assert how_chosen({}) == ""
