"""What the verbs around boards do once their settings are read: rank, compare, check."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import leaderboard as boards
from harness.config import BoardCheckSettings, BoardSettings, CompareSettings
from harness.errors import GraftbenchError, all_of
from harness.evaluation.engines import engine_from_config
from harness.leaderboard.check import check_board, check_record
from harness.leaderboard.compare import Change, PairedComparison, compare_rows
from harness.leaderboard.differences import Difference
from harness.leaderboard.folder import RECORDS
from harness.leaderboard.render.cells import number, p_value, with_bounds
from harness.results import Record, Store, read_record
from harness.run import suite_fields, with_data_of
from harness.zoo.models import resolve_zoo

log = logging.getLogger(__name__)

ANSWER_WIDTH = 160
"""Characters of an answer that a comparison shows."""


def leaderboard(settings: BoardSettings) -> None:
    """Rank the records of a zoo and a suite, print the board and write its folder."""
    out = settings.out or Path("leaderboards") / settings.zoo["name"]
    records = _records(settings)
    board = boards.build_board(records)
    boards.print_board(board, Console())
    if settings.records is None:
        boards.export_records(records, out)
    for path in boards.write_board(board, out):
        log.info("wrote %s", path)


def compare(settings: CompareSettings) -> None:
    """Print the paired comparison of two rows, and the items that changed, both ways."""
    result = compare_rows(_records(settings), settings.a, settings.b)
    console = Console()
    table = Table(
        "", f"{result.first} \N{MINUS SIGN} {result.second}", "p", title=f"On {result.items:,} items, in points"
    )
    for name, difference in [("average", result.average), *result.capabilities.items()]:
        table.add_row(name, Text(with_bounds(difference.over_items, signed=True)), p_value(difference.p_value))
    console.print(table)
    console.print(Text(_verdict(result)))
    store = Store(settings.home / "results")
    for better, worse, changes in (
        (result.first, result.second, result.better),
        (result.second, result.first, result.worse),
    ):
        console.print(Text(f"\n{len(changes)} items on which {better} scores more than {worse}:", style="bold"))
        for change in changes[: settings.show]:
            console.print(Text(f"  {change.task}  {change.item}  {change.first:g} : {change.second:g}"), soft_wrap=True)
            for label, keys in zip((result.first, result.second), result.records, strict=True):
                for answer in _answers(store, keys, change):
                    console.print(Text(f"    {label}: {answer}", style="dim"), soft_wrap=True)
        if len(changes) > settings.show:
            console.print(Text(f"  and {len(changes) - settings.show} more (show={len(changes)})"))


def check(settings: BoardCheckSettings) -> None:
    """Check a board's folder, or a record that wants to join one.

    Raises:
        GraftbenchError: something is wrong; all of it is named.
    """
    path = settings.path.expanduser()
    if not path.exists():
        raise GraftbenchError(f"{settings.path} does not exist; name a board's folder or a record's file")
    if path.is_dir():
        problems, what = check_board(path), f"the board {path} follows from its records"
    else:
        board = settings.board.expanduser() if settings.board else path.resolve().parent.parent
        beside = sorted((board / RECORDS).glob("*.json"))
        if settings.board and not beside:
            raise GraftbenchError(f"board={settings.board} has no {RECORDS}/; name a board's folder")
        others = boards.load_records(board / RECORDS) if settings.board else _readable(beside, path)
        problems, what = check_record(path, others), f"{path} fits to {len(others)} records beside it"
    if problems:
        raise all_of(problems)
    Console().print(f"{what}: in order", highlight=False, soft_wrap=True)


def _verdict(result: PairedComparison) -> str:
    average: Difference = result.average
    if average.p_value > boards.SIGNIFICANCE:
        return "The two cannot be told apart on these items (paired sign-flip permutation test, not corrected)."
    better = result.first if (average.over_items.value or 0) > 0 else result.second
    points = number(abs(average.over_items.value or 0))
    return f"{better} is better by {points} points (paired sign-flip permutation test, not corrected for other pairs)."


def _answers(store: Store, keys: Sequence[str], change: Change) -> list[str]:
    """The answers to an item, where the store has them."""
    found = []
    for key in keys:
        path = store.answers_path(key)
        if path.is_file():
            filters = [("task", "=", change.task), ("item", "=", change.item)]
            found += pq.read_table(path, columns=["answer"], filters=filters)["answer"].to_pylist()
    return [text if len(text) <= ANSWER_WIDTH else text[:ANSWER_WIDTH] + "…" for text in map(repr, found)]


def _readable(paths: Sequence[Path], joining: Path) -> list[Record]:
    """The records beside one that wants to join."""
    return [read_record(path) for path in paths if path.resolve() != joining.resolve()]


def _records(settings: BoardSettings) -> list[Record]:
    """The records of a folder, if one is named, or else the store's."""
    return boards.load_records(settings.records) if settings.records else _records_for(settings)


def _records_for(settings: BoardSettings) -> list[Record]:
    """The store's records of that zoo (with each of the training seeds that are asked for), suite, split and engine."""
    engine = engine_from_config(settings.backend).describe()
    digests = set()
    for seed in settings.training_seeds or (None,):
        build = dict(settings.zoo.get("build") or {}) | ({} if seed is None else {"training_seed": seed})
        zoo = {**settings.zoo, "build": build} if seed is not None else settings.zoo
        models = resolve_zoo(zoo, settings.home, build=False)
        digests.add((models.digest, suite_fields(with_data_of(settings.suite, models))["digest"]))
    found = Store(settings.home / "results").records()
    wanted = [
        record
        for record in found
        if record.engine == engine and (record.zoo["digest"], record.suite["digest"]) in digests
    ]
    if not wanted:
        raise GraftbenchError(
            f"no results for zoo={models.name} and suite={settings.suite.name} ({settings.suite.split}) in "
            f"{settings.home}/results, which holds {len(found)} others; make some with graftbench run"
        )
    return wanted
