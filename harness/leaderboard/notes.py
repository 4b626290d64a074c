"""What records say of how they were made that a reader of their scores must know."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harness.results import Record

TRUNCATED_SHARE = 0.1
"""From this share of a task's answers on, the limit of new tokens has a say in its score."""


def evaluation_notes(records: Sequence[Record], labels: Mapping[str, str]) -> list[str]:
    """Sentences about answers that were cut off, and about what differs between the rows: prompts, number format, how
    model-written code ran, versions. Records that do not tell are passed over.

    Args:
        records: those of a board.
        labels: the rows' labels by record key.
    """
    tasks = list(dict.fromkeys(task.task for record in records for task in record.tasks))
    notes = [note for task in tasks for note in _truncated(task, records, labels)]
    for task in tasks:
        notes += _differing(f"Rows were asked different prompts in {task}", records, labels, _prompts_of(task))
    notes += _differing("Rows were computed in different number formats", records, labels, _found("model", "dtype"))
    notes += _differing("Rows ran model-written code in different sandboxes", records, labels, _found("sandbox"))
    for package in sorted({package for record in records for package in record.versions}):
        about = f"Rows were made with different versions of {package}"
        notes += _differing(about, records, labels, _version_of(package))
    return notes


def _truncated(task: str, records: Sequence[Record], labels: Mapping[str, str]) -> Iterator[str]:
    shares = {}
    for record in records:
        for each in record.tasks:
            share = each.counts.get("truncated", 0) / (len(each.outcomes) * _samples(record, each.task))
            if each.task == task and share >= TRUNCATED_SHARE:
                shares[labels[record.key]] = share
    if shares:
        listing = ", ".join(f"{label} {share:.0%}" for label, share in sorted(shares.items()))
        yield f"Answers to {task} that ran into the limit of new tokens and may be cut off: {listing}."


def _samples(record: Record, task: str) -> int:
    """Answers to each item: the tasks of a group have one."""
    return int(record.suite.get("tasks", {}).get(task, {}).get("repeats", 1))


def _differing(
    about: str, records: Sequence[Record], labels: Mapping[str, str], value_of: Callable[[Record], str | None]
) -> Iterator[str]:
    users: dict[str, list[str]] = {}
    for record in records:
        value = value_of(record)
        if value is not None:
            users.setdefault(value, []).append(labels[record.key])
    if len(users) > 1:
        listing = "; ".join(f"{value} ({', '.join(sorted(users[value]))})" for value in sorted(users))
        yield f"{about}: {listing}."


def _prompts_of(task: str) -> Callable[[Record], str | None]:
    def prompts(record: Record) -> str | None:
        digests = (each.prompts for each in record.tasks if each.task == task)
        digest = next(digests, None)
        return digest[:12] if digest is not None else None

    return prompts


def _version_of(package: str) -> Callable[[Record], str | None]:
    return lambda record: record.versions.get(package, "unknown")


def _found(*path: str) -> Callable[[Record], str | None]:
    def found(record: Record) -> str | None:
        value: Any = record.circumstances
        for name in path:
            value = (value or {}).get(name)
        return str(value) if value is not None else None

    return found
