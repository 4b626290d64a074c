"""Two rows side by side, counted by hand."""

import pytest

from harness.errors import GraftbenchError
from harness.leaderboard.compare import compare_rows
from harness.leaderboard.pareto import pareto_front
from tests.leaderboard.conftest import MakeRecord


def test_items_that_changed_are_named_both_ways(make_record: MakeRecord) -> None:
    first = make_record("one", {"math": [1, 1, 0, 1], "code": [0, 0]})
    second = make_record("other", {"math": [1, 0, 1, 1], "code": [0, 1]})
    result = compare_rows([first, second], "one", "other")
    assert [(change.task, change.item) for change in result.better] == [("tiny_math", "math-00001")]
    assert [change.item for change in result.worse] == ["math-00002", "code-00001"]
    assert result.items == 6
    assert result.average.over_items.value == pytest.approx(-25.0)  # (75 + 0)/2 - (75 + 50)/2
    assert result.capabilities["math"].over_items.value == pytest.approx(0.0)
    assert result.capabilities["code"].over_items.value == pytest.approx(-50.0)


def test_the_other_way_round_is_the_negative(make_record: MakeRecord) -> None:
    first = make_record("one", {"math": [1, 1, 0, 1, 1, 1]})
    second = make_record("other", {"math": [0, 0, 0, 1, 0, 0]})
    there, back = (compare_rows([first, second], *names) for names in (("one", "other"), ("other", "one")))
    assert there.average.over_items.value == -back.average.over_items.value == pytest.approx(400 / 6)
    assert there.average.p_value == back.average.p_value
    assert there.better == tuple(
        type(change)(change.task, change.item, change.second, change.first) for change in back.worse
    )


def test_rows_go_by_label_or_key_and_must_be_two(make_record: MakeRecord) -> None:
    records = [make_record(name, {"math": [1, 0]}) for name in ("one", "other")]
    assert compare_rows(records, "key-method-one", "other").first == "one"
    assert compare_rows(records, "one", "leaderboards/x/records/key-method-other.json").second == "other"
    with pytest.raises(GraftbenchError, match="unknown row of the board 'onw'; did you mean 'one'"):
        compare_rows(records, "onw", "other")
    with pytest.raises(GraftbenchError, match="are the same row"):
        compare_rows(records, "one", "key-method-one")


def test_the_front_is_what_no_other_beats_in_both() -> None:
    points = [(1.0, 50.0), (2.0, 60.0), (2.0, 55.0), (3.0, 58.0), (4.0, 70.0), (4.0, 70.0), (0.5, 40.0)]
    assert pareto_front(points) == [6, 0, 1, 4, 5]
    assert pareto_front([]) == []
