"""What a committed board must fulfil, and a record that wants to join it."""

from collections.abc import Sequence
from pathlib import Path

from harness.errors import GraftbenchError
from harness.files import canonical_json, text_digest
from harness.leaderboard.comparable import align_outcomes, check_comparable
from harness.leaderboard.folder import RECORDS, generated_files
from harness.leaderboard.ranking import build_board
from harness.results import Record, read_record
from harness.results.record import key_of


def check_board(folder: Path) -> list[str]:
    """What is wrong with a board's folder, a sentence each: its records, and whether all else follows from them.

    Raises:
        GraftbenchError: the folder is no board.
    """
    paths = sorted((folder / RECORDS).glob("*"))
    if not paths:
        raise GraftbenchError(f"{folder} is no board: it has no {RECORDS}/; make one with graftbench leaderboard")
    problems, records = [], []
    for path in paths:
        record, wrong = _read(path)
        problems += wrong
        records += [record] if record is not None and not wrong else []
    if problems:
        return problems
    try:
        texts = generated_files(build_board(records))
    except GraftbenchError as error:
        return [f"{folder / RECORDS}: {error}"]
    for name, text in texts.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing; {_AGAIN.format(folder)}")
        elif path.read_bytes() != text.encode():
            problems.append(f"{path} is not what the records give; {_AGAIN.format(folder)}")
    return problems


def check_record(path: Path, board: Sequence[Record] = ()) -> list[str]:
    """What is wrong with a record's file, a sentence each.

    Args:
        path: the file.
        board: the other records of the board that it wants to join; its items must be theirs.
    """
    record, problems = _read(path)
    if record is None or problems:
        return problems
    others = [other for other in board if other.key != record.key]
    try:
        check_comparable([*others, record])
        align_outcomes([*others, record])
    except GraftbenchError as error:
        problems.append(f"{path}: {error}")
    return problems


_AGAIN = "make it again with graftbench leaderboard records={0}/records out={0}"


def _read(path: Path) -> tuple[Record | None, list[str]]:
    """The record, if it can be read, and what is wrong with it on its own."""
    if path.suffix != ".json":
        return None, [f"{path} is no record: records are files KEY.json"]
    try:
        record = read_record(path)
    except GraftbenchError as error:
        return None, [str(error)]
    return record, [f"{path}: {problem}" for problem in _problems(record, path.stem)]


def _problems(record: Record, name: str) -> list[str]:
    found = []
    if record.key != name:
        found.append(f"it holds the record {record.key}; the file must be called {record.key}.json")
    if record.key != key_of(record.suite, record.engine, record.recipe):
        found.append("its key does not follow from its suite, engine and recipe: one of them was altered")
    settings = {key: value for key, value in record.suite.items() if key not in ("name", "digest")}
    if record.suite.get("digest") != text_digest(canonical_json(settings)):
        found.append("the digest of its suite does not follow from the suite's settings: one of them was altered")
    for task in record.tasks:
        for what, count in task.counts.items():
            if not 0 <= count <= len(task.item_ids):
                found.append(f"task '{task.task}' counts {count} {what} answers of {len(task.item_ids)} items")
    if any(seconds < 0 for seconds in record.timings.values()):
        found.append("a timing is negative")
    return found
