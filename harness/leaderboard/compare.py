"""Two rows side by side: their difference on the same items, and the items that changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import GraftbenchError, unknown_name
from harness.leaderboard.comparable import check_comparable, unique_records
from harness.leaderboard.differences import Difference
from harness.leaderboard.ranking import Ranking
from harness.results import Record

SHORTEST_KEY = 8
"""Characters of a record's key that name it."""


@dataclass(frozen=True)
class Change:
    """An item that two rows answered differently; with several seeds, outcomes are means over them."""

    task: str
    item: str
    first: float
    second: float


@dataclass(frozen=True)
class PairedComparison:
    """The first row minus the second, in points."""

    first: str
    second: str
    records: tuple[tuple[str, ...], tuple[str, ...]]
    """Keys of each row's records."""
    average: Difference
    capabilities: dict[str, Difference]
    items: int
    better: tuple[Change, ...]
    """Items on which the first scores more."""
    worse: tuple[Change, ...]
    """Items on which the second does."""


def compare_rows(records: Sequence[Record], first: str, second: str) -> PairedComparison:
    """Compare two rows of the board that the records make.

    Args:
        records: of a board; all decide which records are one row, and how rows are called.
        first: a row's label, or one of its records: the beginning of the key, or the file that it names.
        second: likewise.

    Raises:
        GraftbenchError: a row does not exist, both are the same, or the records must not be compared.
    """
    unique = unique_records(records)
    check_comparable(unique)
    ranking = Ranking(unique)
    i, j = (_row(ranking, wanted) for wanted in (first, second))
    if i == j:
        raise GraftbenchError(f"{first} and {second} are the same row; name two")
    (average,) = ranking.differences.compare([(i, j)], ranking.weights)
    capabilities = {c: ranking.differences.compare([(i, j)], ranking.weights_of[c])[0] for c in ranking.capabilities}
    changes = [
        Change(task.task, item, float(one), float(other))
        for task in ranking.tasks
        for item, one, other in zip(
            sorted(_item_ids(unique[0], task.task)), task.outcomes[:, i], task.outcomes[:, j], strict=True
        )
        if one != other
    ]
    return PairedComparison(
        first=ranking.labels[ranking.records[i].key],
        second=ranking.labels[ranking.records[j].key],
        records=(_keys(ranking, i), _keys(ranking, j)),
        average=average,
        capabilities=capabilities,
        items=sum(len(task.outcomes) for task in ranking.tasks),
        better=tuple(change for change in changes if change.first > change.second),
        worse=tuple(change for change in changes if change.first < change.second),
    )


def _row(ranking: Ranking, wanted: str) -> int:
    labels = [ranking.labels[record.key] for record in ranking.records]
    if wanted in labels:
        return labels.index(wanted)
    beginning = Path(wanted).stem if wanted.endswith(".json") else wanted
    if len(beginning) >= SHORTEST_KEY:
        found = [i for i in range(len(labels)) if any(key.startswith(beginning) for key in _keys(ranking, i))]
        if len(found) == 1:
            return found[0]
    raise unknown_name("row of the board", wanted, labels)


def _keys(ranking: Ranking, row: int) -> tuple[str, ...]:
    return tuple(ranking.all_records[i].key for members in ranking.rows[row].members.values() for i in members)


def _item_ids(record: Record, task: str) -> tuple[str, ...]:
    return next(each.item_ids for each in record.tasks if each.task == task)
