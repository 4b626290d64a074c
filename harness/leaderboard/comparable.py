"""Which records may stand on one board: those of the same suite, split, zoo and engine, on the same items."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from harness.errors import GraftbenchError
from harness.files import canonical_json
from harness.leaderboard.statistics import FloatArray
from harness.results import Record, TaskOutcome, to_json

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class TaskOutcomes:
    """One task's outcomes over all records."""

    task: str
    capability: str
    chance: float
    outcomes: FloatArray
    """Shape (items, records): items sorted by id, records in the order given; in 0..1."""


def unique_records(records: Sequence[Record]) -> list[Record]:
    """The records sorted by key, one of each key.

    The same model evaluated twice may differ in its timings; then the first by its text is kept.

    Raises:
        GraftbenchError: two records of one key have different outcomes.
    """
    by_key: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: (record.key, to_json(record))):
        kept = by_key.setdefault(record.key, record)
        if _outcomes_by_item(kept) != _outcomes_by_item(record):
            raise GraftbenchError(
                f"two records have the key {record.key} ('{kept.label}', '{record.label}') but different "
                "outcomes; one of them was altered: delete it, or evaluate again"
            )
    return list(by_key.values())


def check_comparable(records: Sequence[Record]) -> None:
    """Refuse records that were not made under the same conditions.

    Raises:
        GraftbenchError: suite, split, zoo or engine differ (or are not recorded); the difference and the
            records that deviate from the most common value are named.
    """
    for what, condition, advice in _CONDITIONS:
        values = []
        for record in records:
            value = condition(record)
            if value is None:
                raise GraftbenchError(f"{_name(record)} has no {what}, so it cannot be ranked; evaluate it again")
            values.append(value)
        usual, deviating = _deviating(values)
        if deviating:
            raise GraftbenchError(
                f"records that differ in their {what} are never ranked together: "
                f"{_names(records, deviating)} has {_difference(values[deviating[0]], usual)}; {advice}"
            )


def align_outcomes(records: Sequence[Record]) -> list[TaskOutcomes]:
    """Outcomes of all records on the same items, tasks in the suite's order.

    Raises:
        GraftbenchError: a record lacks tasks or items that the others have, has ones that they lack, or
            scores a task otherwise (capability, metric or chance); the record is named.
    """
    tasks = [{task.task: task for task in record.tasks} for record in records]
    usual, deviating = _deviating([canonical_json(sorted(by_name)) for by_name in tasks])
    if deviating:
        own = canonical_json(sorted(tasks[deviating[0]]))
        raise GraftbenchError(
            f"{_names(records, deviating)} has the tasks {own} instead of {usual}; evaluate it on the whole suite"
        )
    return [_align([by_name[task.task] for by_name in tasks], records) for task in records[0].tasks]


def _align(tasks: Sequence[TaskOutcome], records: Sequence[Record]) -> TaskOutcomes:
    """One task's outcomes, of all records."""
    name = tasks[0].task
    usual, deviating = _deviating([f"{t.capability}, {t.metric}, chance {t.chance:g}" for t in tasks])
    if deviating:
        raise GraftbenchError(
            f"{_names(records, deviating)} scores the task '{name}' not as the others do ({usual}); evaluate it again"
        )
    usual_items, deviating = _deviating([frozenset(task.item_ids) for task in tasks])
    if deviating:
        own = set(tasks[deviating[0]].item_ids)
        parts = [
            f"{verb} {len(items)} of {len(usual_items)} items (such as '{min(items)}')"
            for verb, items in (("lacks", usual_items - own), ("has beyond the others", own - usual_items))
            if items
        ]
        raise GraftbenchError(
            f"{_names(records, deviating)} {' and '.join(parts)} in the task '{name}'; evaluate it on the same items"
        )
    order = sorted(usual_items)
    columns = [dict(zip(task.item_ids, task.outcomes, strict=True)) for task in tasks]
    outcomes = np.array([[column[item] for column in columns] for item in order], dtype=np.float64)
    return TaskOutcomes(name, tasks[0].capability, tasks[0].chance, outcomes)


def _digest_of(field: str) -> Callable[[Record], str | None]:
    return lambda record: getattr(record, field).get("digest")


_CONDITIONS: tuple[tuple[str, Callable[[Record], str | None], str], ...] = (
    (
        "split",
        lambda record: record.suite.get("split"),
        "make one board of test items and another of validation items",
    ),
    (
        "suite digest",
        _digest_of("suite"),
        "choose one suite, or evaluate all of them with this version of it",
    ),
    (
        "zoo digest",
        _digest_of("zoo"),
        "choose one zoo, or merge and evaluate all of them with this version of it",
    ),
    (
        "engine",
        lambda record: canonical_json(record.engine),
        "choose one backend, or evaluate all of them with it",
    ),
)


def _deviating(values: Sequence[Value]) -> tuple[Value, list[int]]:
    """The most common value (of equally common ones, the first), and the indices where the value is
    another."""
    usual = Counter(values).most_common(1)[0][0]
    return usual, [index for index, value in enumerate(values) if value != usual]


def _difference(own: str, usual: str) -> str:
    """`own`, not `usual`; of two mappings as JSON only the entries that differ; of digests only the
    beginning."""
    if not own.startswith("{"):
        return f"{own[:16]}, the others {usual[:16]}"
    own_entries, usual_entries = json.loads(own), json.loads(usual)
    names = sorted(own_entries.keys() | usual_entries.keys())
    differing = [name for name in names if own_entries.get(name) != usual_entries.get(name)]
    return ", ".join(f"{name}={own_entries.get(name)} (the others {usual_entries.get(name)})" for name in differing)


def _outcomes_by_item(record: Record) -> dict[str, dict[str, float]]:
    return {t.task: dict(zip(t.item_ids, t.outcomes, strict=True)) for t in record.tasks}


def _names(records: Sequence[Record], indices: Sequence[int]) -> str:
    first = _name(records[indices[0]])
    return f"{first} (and {len(indices) - 1} more)" if len(indices) > 1 else first


def _name(record: Record) -> str:
    return f"record '{record.label}' ({record.key[:12]})"
