"""A board that anybody may add to is checked: each way to spoil it is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.files import canonical_json, text_digest
from harness.leaderboard import build_board, export_records, write_board
from harness.leaderboard.check import check_board, check_record
from harness.results.record import Record, key_of
from tests.leaderboard.conftest import MakeRecord

SETTINGS = {"split": "test", "tasks": {"tiny_math": {"version": 1}}}
SUITE = {"name": "tiny", "digest": text_digest(canonical_json(SETTINGS)), **SETTINGS}
ENGINE = {"name": "hf", "dtype": "float32"}


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    made = []
    for label, outcomes in (("linear", [1, 0, 1]), ("ties", [1, 1, 1]), ("dare", [0, 0, 1])):
        recipe = {"method": label}
        key = key_of(SUITE, ENGINE, recipe)
        made.append(make_record(label, {"math": outcomes}, key=key, recipe=recipe, suite=SUITE, engine=ENGINE))
    return made


@pytest.fixture
def board(records: list[Record], tmp_path: Path) -> Path:
    export_records(records, tmp_path)
    write_board(build_board(records), tmp_path)
    return tmp_path


def spoil(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def test_a_sound_board_has_no_problems(board: Path, records: list[Record]) -> None:
    assert check_board(board) == []
    path = board / "records" / f"{records[0].key}.json"
    assert check_record(path, records) == []


@pytest.mark.parametrize("name", ["README.md", "index.html", "leaderboard.csv", "leaderboard.json", "leaderboard.tex"])
def test_what_does_not_follow_from_the_records_is_named(board: Path, name: str) -> None:
    with (board / name).open("a", encoding="utf-8") as file:
        file.write("63.7")
    assert [problem.partition(" is not")[0] for problem in check_board(board)] == [str(board / name)]
    (board / name).unlink()
    assert check_board(board)[0].startswith(f"{board / name} is missing")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields["recipe"].update(method="better"), "its key does not follow"),
        (lambda fields: fields["engine"].update(dtype="bfloat16"), "its key does not follow"),
        (lambda fields: fields["suite"]["tasks"]["tiny_math"].update(version=2), "the digest of its suite"),
        (lambda fields: fields["tasks"][0].update(outcomes=[1, 1, 2]), "an outcome lies outside 0..1"),
        (lambda fields: fields["tasks"][0].update(item_ids=["a", "a", "b"]), "item ids repeat"),
        (lambda fields: fields["tasks"][0].update(outcomes=[1, 1]), "3 item ids, but 2 outcomes"),
        (lambda fields: fields["tasks"][0].update(item_ids=["a", "b", "c"]), "lacks 3 of 3 items"),
        (lambda fields: fields["tasks"][0].update(counts={"empty": 4}), "counts 4 empty answers of 3 items"),
        (lambda fields: fields.update(format_version=99), "record format 99"),
        (lambda fields: fields.update(score=100), "score"),
    ],
)
def test_a_spoilt_record_is_refused_with_the_reason(
    board: Path, records: list[Record], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = board / "records" / f"{records[0].key}.json"
    spoil(path, change)
    assert said in " ".join(check_record(path, records[1:]))
    assert said in " ".join(check_board(board))


def test_a_record_must_bear_its_key_and_nothing_else_may_lie_there(board: Path, records: list[Record]) -> None:
    path = board / "records" / f"{records[0].key}.json"
    path.rename(path.with_name("mine.json"))
    (board / "records" / "notes.txt").write_text("hello", encoding="utf-8")
    problems = check_board(board)
    assert f"the file must be called {records[0].key}.json" in problems[0]
    assert "notes.txt is no record" in problems[1]
