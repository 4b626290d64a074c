"""Which records may stand on one board: those of the same suite, split, zoo and engine, on the same items."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

from harness.errors import GraftbenchError
from harness.files import canonical_json
from harness.leaderboard.labels import flattened
from harness.leaderboard.statistics import Design, IntArray, TaskItems, design_of
from harness.results import Record, TaskOutcome, to_json

Value = TypeVar("Value", bound=Hashable)

SUITE = "suite digest"
_SHOWN = 3
"""Settings that an error names before it counts."""


def unique_records(records: Sequence[Record]) -> list[Record]:
    """The records sorted by key, one of each key.

    The same model evaluated twice may differ in its timings; then the first by its text is kept.

    Raises:
        GraftbenchError: two records of one key have different outcomes.
    """
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    unique = []
    for key, alike in sorted(by_key.items()):
        kept, *others = sorted(alike, key=to_json) if len(alike) > 1 else alike
        for record in others:
            if _outcomes_by_item(kept) != _outcomes_by_item(record):
                raise GraftbenchError(
                    f"two records have the key {key} ('{kept.label}', '{record.label}') but different "
                    "outcomes; one of them was altered: delete it, or evaluate again"
                )
        unique.append(kept)
    return unique


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
                f"{_names(records, deviating)} has {_difference(values[deviating[0]], usual)}"
                f"{_settings(records[deviating[0]], records[values.index(usual)]) if what == SUITE else ''}; {advice}"
            )
    _check_models(records)


def _check_models(records: Sequence[Record]) -> None:
    """One version of the models; or one for each training seed of the same set, all of which are stated."""
    for record in records:
        if record.zoo.get("digest") is None:
            raise GraftbenchError(f"{_name(record)} has no zoo digest, so it cannot be ranked; evaluate it again")
    digests = [str(record.zoo["digest"]) for record in records]
    seeds = [record.zoo.get("training_seed") for record in records]
    usual, deviating = _deviating(digests)
    if not deviating and len(set(seeds) - {None}) <= 1:
        return
    advice = "choose one zoo, or merge and evaluate all of them with this version of it"
    names, others = _deviating([str(record.zoo.get("name")) for record in records])
    if None in seeds or others:
        found = f"zoo digest {_difference(digests[deviating[0]], usual)}" if deviating else "the same zoo digest"
        missing = [i for i, seed in enumerate(seeds) if seed is None]
        why = (
            f"{_names(records, missing)} states no training seed"
            if missing
            else f"{_names(records, others)} is of zoo {records[others[0]].zoo.get('name')}, not {names}"
        )
        raise GraftbenchError(
            "records that differ in their zoo digest are ranked together only as training seeds of one zoo: "
            f"{_names(records, deviating or missing)} has {found}, and {why}; {advice}"
        )
    for own, other, what in ((digests, seeds, "training seeds"), (seeds, digests, "zoo digests")):
        for value in sorted(set(own), key=str):
            several = sorted({str(o) for v, o in zip(own, other, strict=True) if v == value})
            if len(several) > 1:
                of = f"zoo digest {str(value)[:16]}" if what == "training seeds" else f"training seed {value}"
                raise GraftbenchError(
                    f"records of one {of} have different {what} ({', '.join(each[:16] for each in several)}); {advice}"
                )


def align_outcomes(records: Sequence[Record]) -> tuple[list[TaskItems], Design]:
    """Outcomes of all records on the same items, tasks in the suite's order, and which items are drawn together.

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
    aligned = {name: [by_name[name] for by_name in tasks] for name in [task.task for task in records[0].tasks]}
    items = {name: _same_items(of_task, records) for name, of_task in aligned.items()}
    clusters = cluster_of_items(records)
    design, numbers = design_of(
        {name: [(clusters.get(item, item), _subject(item, name)) for item in items[name]] for name in items}
    )
    return [_align(of_task, items[name], numbers[name]) for name, of_task in aligned.items()], design


def cluster_of_items(records: Sequence[Record]) -> dict[str, str]:
    """The cluster of every item of which a record states one.

    Raises:
        GraftbenchError: two records put an item into different clusters.
    """
    clusters: dict[str, str] = {}
    for record in records:
        for task in record.tasks:
            for item, cluster in zip(task.item_ids, task.clusters, strict=False):
                if clusters.setdefault(item, cluster) != cluster:
                    raise GraftbenchError(
                        f"{_name(record)} puts the item '{item}' into the cluster '{cluster}', another record into "
                        f"'{clusters[item]}'; evaluate all of them with one version of the suite"
                    )
    return clusters


def _subject(item: str, task: str) -> str:
    """The task that lm-eval asked, with which an item's id begins: of a group such as MMLU, the subject."""
    asked, colon, _ = item.partition(":")
    return asked if colon else task


def _same_items(tasks: Sequence[TaskOutcome], records: Sequence[Record]) -> list[str]:
    """One task's items, which all records must share, sorted."""
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
    return sorted(usual_items)


def _align(tasks: Sequence[TaskOutcome], items: Sequence[str], clusters: IntArray) -> TaskItems:
    """One task's outcomes, of all records."""
    columns = [dict(zip(task.item_ids, task.outcomes, strict=True)) for task in tasks]
    outcomes = np.array([[column[item] for column in columns] for item in items], dtype=np.float64)
    return TaskItems(tasks[0].task, tasks[0].capability, tasks[0].chance, outcomes, clusters)


def _digest_of(field: str) -> Callable[[Record], str | None]:
    return lambda record: getattr(record, field).get("digest")


_CONDITIONS: tuple[tuple[str, Callable[[Record], str | None], str], ...] = (
    (
        "split",
        lambda record: record.suite.get("split"),
        "make one board of test items and another of validation items",
    ),
    (
        SUITE,
        _digest_of("suite"),
        "choose one suite, or evaluate all of them with this version of it",
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


def _settings(record: Record, other: Record) -> str:
    """The settings of the suite in which two records differ, such as a task's version."""
    own, usual = flattened(record.suite), flattened(other.suite)
    names = sorted(name for name in own.keys() | usual.keys() if own.get(name) != usual.get(name) and name != "digest")
    shown = [
        f"{name}={own.get(name, 'none')[:16]}, the others {usual.get(name, 'none')[:16]}" for name in names[:_SHOWN]
    ]
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" ({'; '.join(shown)}{more})" if shown else ""


def _outcomes_by_item(record: Record) -> dict[str, dict[str, float]]:
    return {t.task: dict(zip(t.item_ids, t.outcomes, strict=True)) for t in record.tasks}


def _names(records: Sequence[Record], indices: Sequence[int]) -> str:
    first = _name(records[indices[0]])
    return f"{first} (and {len(indices) - 1} more)" if len(indices) > 1 else first


def _name(record: Record) -> str:
    return f"record '{record.label}' ({record.key[:12]})"
