"""A board's folder can be recomputed from its own records."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import GraftbenchError
from harness.leaderboard import build_board, export_records, load_records, write_board
from harness.results import Record


def test_a_board_is_recomputed_from_its_folder_byte_for_byte(board_records: list[Record], tmp_path: Path) -> None:
    written = write_board(build_board(board_records), tmp_path / "tiny")
    export_records(board_records, tmp_path / "tiny")
    assert [path.name for path in written] == [
        "README.md",
        "index.html",
        "leaderboard.csv",
        "leaderboard.json",
        "leaderboard.tex",
        "pairs.csv",
    ]
    loaded = load_records(tmp_path / "tiny" / "records")
    assert loaded == sorted(board_records, key=lambda record: record.key)
    again = write_board(build_board(loaded), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_export_replaces_the_former_records(board_records: list[Record], tmp_path: Path) -> None:
    export_records(board_records, tmp_path)
    export_records(board_records[:2], tmp_path)
    assert load_records(tmp_path / "records") == sorted(board_records[:2], key=lambda record: record.key)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_a_key_that_leads_out_of_the_folder_is_refused(board_records: list[Record], tmp_path: Path) -> None:
    export_records(board_records, tmp_path / "tiny")
    with pytest.raises(GraftbenchError, match="cannot name a file"):
        export_records([replace(board_records[0], key="../outside")], tmp_path / "tiny")
    assert len(load_records(tmp_path / "tiny" / "records")) == len(board_records)


def test_an_unreadable_or_renamed_record_is_named(board_records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match="holds no records"):
        load_records(tmp_path / "records")
    export_records(board_records, tmp_path)
    path = tmp_path / "records" / f"{board_records[0].key}.json"
    path.rename(path.with_name("other.json"))
    with pytest.raises(GraftbenchError, match=r"other\.json: holds the record key-base-base"):
        load_records(tmp_path / "records")
    path.with_name("other.json").write_text('{"format_version": 1')
    with pytest.raises(GraftbenchError, match=r"other\.json"):
        load_records(tmp_path / "records")


def test_a_folder_with_other_things_is_not_emptied(tmp_path: Path, board_records: list[Record]) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "precious.txt").write_text("mine")
    with pytest.raises(GraftbenchError, match=r"'precious\.txt', which is no record"):
        export_records(board_records, tmp_path)
    assert (tmp_path / "records" / "precious.txt").read_text() == "mine"
