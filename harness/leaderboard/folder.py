"""A board's folder: the records, and what is generated from them and can be generated again."""

import re
from collections.abc import Sequence
from pathlib import Path

from harness.errors import GraftbenchError
from harness.files import folder_written_atomically, write_text_atomically
from harness.leaderboard import render
from harness.leaderboard.board import Board
from harness.results import Record, read_record, to_json

RECORDS = "records"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def write_board(board: Board, folder: Path) -> list[Path]:
    """Write the files of `generated_files`, each replaced at once or not at all, and return their paths."""
    texts = generated_files(board)
    for name, text in texts.items():
        write_text_atomically(Path(folder) / name, text)
    return [Path(folder) / name for name in texts]


def generated_files(board: Board) -> dict[str, str]:
    """The texts of a board's folder by file name: for a repository, a browser, a paper and machines.

    They depend on the board alone: no date, no machine.
    """
    return {
        "README.md": render.to_markdown(board),
        "index.html": render.to_html(board),
        "leaderboard.csv": render.to_csv(board),
        "leaderboard.json": render.to_json(board),
        "leaderboard.tex": render.to_latex(board),
        "pairs.csv": render.pairs_to_csv(board),
    }


def export_records(records: Sequence[Record], folder: Path) -> None:
    """Keep the records under `folder`/records, one JSON each, in place of those that were there.

    Raises:
        GraftbenchError: a record's key cannot be a file name.
    """
    for record in records:
        if not _FILE_NAME.fullmatch(record.key):
            raise GraftbenchError(f"record '{record.label}': the key {record.key!r} cannot name a file")
    target = Path(folder) / RECORDS
    strangers = [path.name for path in target.iterdir() if path.suffix != ".json"] if target.is_dir() else []
    if strangers:
        raise GraftbenchError(f"{target} holds '{sorted(strangers)[0]}', which is no record and would be lost; move it")
    with folder_written_atomically(target) as temporary:
        for record in records:
            (temporary / f"{record.key}.json").write_text(to_json(record), encoding="utf-8")


def load_records(folder: Path) -> list[Record]:
    """The records in a folder (a board keeps them under `records`), sorted by key.

    Raises:
        GraftbenchError: there are none, or one is unreadable or lies under another key's name. Nothing is
            left out in silence, for a board without one of its rows is another board.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise GraftbenchError(f"{folder} holds no records; export them with graftbench leaderboard")
    records = [read_record(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if path.stem != record.key:
            raise GraftbenchError(f"{path}: holds the record {record.key}; rename the file or delete it")
    return records
