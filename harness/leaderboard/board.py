"""The board: a pure function of records, ranked, with what is known and what is not told apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from harness.errors import GraftbenchError
from harness.leaderboard.comparable import TaskOutcomes, align_outcomes, check_comparable, unique_records
from harness.leaderboard.labels import row_labels
from harness.leaderboard.notes import evaluation_notes
from harness.leaderboard.retention import Retentions, expert_rows
from harness.leaderboard.statistics import (
    ROUNDING,
    Estimate,
    FloatArray,
    Interval,
    bootstrap_means,
    indistinguishable,
    mean_interval,
    paired_standard_error,
    percentile_interval,
    smallest_detectable_difference,
    weighted_mean_interval,
)
from harness.results import Record

GROUPS = ("method", "control", "reference", "expert", "base")
"""Roles in the order of the board."""


@dataclass(frozen=True)
class Row:
    """One model on the board. Scores are in points, 0..100; retention in percent of the expert's score."""

    key: str
    label: str
    role: str
    rank: int | None
    """Place among the methods by average; methods of equal average share one. None for every other role, and
    for a method whose hyper-parameters were chosen on test items."""
    expert_of: str | None
    """An expert's own capability."""
    capabilities: dict[str, Estimate]
    average: Estimate
    """Mean over capabilities."""
    difference_to_best: Estimate
    """This average minus the best method's, with its paired bootstrap interval; negative if worse."""
    tied_with_best: bool | None
    """Whether the row cannot be told from the best method on these items; None where there is no best."""
    retention: Estimate
    """Mean over capabilities of `capability_retention`."""
    capability_retention: dict[str, Estimate]
    chosen: str
    """How the hyper-parameters were chosen."""
    merge_seconds: float | None
    hyperparameters: dict[str, Any]
    """Those that the recipe names (under `hyperparameters`) and that are set."""
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Board:
    """Rows by group (`GROUPS`), in each by average, best first, then by label."""

    zoo: str
    suite: str
    split: str
    engine: dict[str, Any]
    digests: dict[str, str]
    """Of the zoo and the suite."""
    capabilities: tuple[str, ...]
    tasks: dict[str, dict[str, Any]]
    """Per task: its capability, metric, chance and number of items."""
    rows: tuple[Row, ...]
    best: str | None
    """Label of the method with the highest average."""
    smallest_detectable_difference: float | None
    """Points of average by which a method must differ from the best to be told apart with 80 % power."""
    notes: tuple[str, ...]
    """What a reader must know about these records."""

    def group(self, role: str) -> list[Row]:
        return [row for row in self.rows if row.role == role]


def build_board(records: Sequence[Record]) -> Board:
    """Rank records; the order in which they come does not matter.

    The best is sought among methods only, since base, experts and multi-task reference are no merges and
    controls are deliberately crippled ones. Every other row is still compared with it: a control that cannot
    be told from the best method is a finding. Methods whose hyper-parameters were chosen on test items have a
    row, but no rank.

    Raises:
        GraftbenchError: there are no records, or records that must not be ranked together; which and why is
            named.
    """
    unique = unique_records(records)
    if not unique:
        raise GraftbenchError("there are no records to rank; evaluate a model first, for example with graftbench run")
    check_comparable(unique)
    tasks = align_outcomes(unique)
    return _Ranking(unique, tasks).board()


class _Ranking:
    """The numbers that rows share: point estimates and bootstrap draws of all records."""

    def __init__(self, records: Sequence[Record], tasks: Sequence[TaskOutcomes]) -> None:
        self.records = records
        self.tasks = tasks
        self.labels = row_labels(records)
        self.capabilities = tuple(dict.fromkeys(task.capability for task in tasks))
        self.tasks_of = {c: [task for task in tasks if task.capability == c] for c in self.capabilities}
        self.weights = {t.task: 1 / (len(self.capabilities) * len(self.tasks_of[t.capability])) for t in tasks}
        self.scores = {c: _mean(t.outcomes.mean(axis=0) for t in self.tasks_of[c]) for c in self.capabilities}
        self.averages = _mean(self.scores.values())
        self.draws = {
            c: _mean(bootstrap_means(t.task, t.outcomes) for t in self.tasks_of[c]) for c in self.capabilities
        }
        self.average_draws = _mean(self.draws.values())
        self.intervals = [{t.task: mean_interval(t.outcomes[:, i]) for t in tasks} for i in range(len(records))]
        self.order = sorted(range(len(records)), key=self._place)
        ranked = [i for i in self.order if records[i].role == "method" and not chosen_on_test(records[i])]
        self.ranked = ranked
        self.best = ranked[0] if ranked else None
        self.retentions = Retentions(
            records=records,
            scores=self.scores,
            draws=self.draws,
            chances={c: float(np.mean([t.chance for t in self.tasks_of[c]])) for c in self.capabilities},
        )

    def board(self) -> Board:
        first = self.records[0]
        metrics = {task.task: task.metric for task in first.tasks}
        return Board(
            zoo=str(first.zoo.get("name", "unnamed")),
            suite=str(first.suite.get("name", "unnamed")),
            split=str(first.suite["split"]),
            engine=first.engine,
            digests={"zoo": str(first.zoo["digest"]), "suite": str(first.suite["digest"])},
            capabilities=self.capabilities,
            tasks={
                task.task: {
                    "capability": task.capability,
                    "metric": metrics[task.task],
                    "chance": task.chance,
                    "items": len(task.outcomes),
                }
                for task in self.tasks
            },
            rows=tuple(self._row(i) for i in self.order),
            best=None if self.best is None else self.labels[self.records[self.best].key],
            smallest_detectable_difference=self._smallest_detectable_difference(),
            notes=tuple(self._notes()),
        )

    def _row(self, i: int) -> Row:
        record = self.records[i]
        difference, tied = self._against_best(i)
        return Row(
            key=record.key,
            label=self.labels[record.key],
            role=record.role,
            rank=self._rank(i),
            expert_of=record.capability,
            capabilities={
                c: Estimate(100 * float(self.scores[c][i]), self._capability(i, c).times(100))
                for c in self.capabilities
            },
            average=Estimate(100 * float(self.averages[i]), self._average(i).times(100)),
            difference_to_best=difference,
            tied_with_best=tied,
            retention=self.retentions.mean(i),
            capability_retention={c: self.retentions.of(i, c) for c in self.capabilities},
            chosen=how_chosen(record.selection),
            merge_seconds=record.timings.get("merge"),
            hyperparameters=_set_hyperparameters(record.recipe),
            recipe=record.recipe,
        )

    def _place(self, i: int) -> tuple[int, float, str, str]:
        """Sort key: group, average (equal up to rounding is equal), label, key."""
        record = self.records[i]
        return GROUPS.index(record.role), -_rounded(self.averages[i]), self.labels[record.key], record.key

    def _rank(self, i: int) -> int | None:
        if i not in self.ranked:
            return None
        return 1 + sum(_rounded(self.averages[j]) > _rounded(self.averages[i]) for j in self.ranked)

    def _capability(self, i: int, capability: str) -> Interval:
        tasks = self.tasks_of[capability]
        return self._combined(i, tasks, [1 / len(tasks)] * len(tasks))

    def _average(self, i: int) -> Interval:
        return self._combined(i, self.tasks, [self.weights[task.task] for task in self.tasks])

    def _combined(self, i: int, tasks: Sequence[TaskOutcomes], weights: Sequence[float]) -> Interval:
        means = [float(task.outcomes[:, i].mean()) for task in tasks]
        return weighted_mean_interval(means, [self.intervals[i][task.task] for task in tasks], weights)

    def _against_best(self, i: int) -> tuple[Estimate, bool | None]:
        if self.best is None:
            return Estimate(reason="no method to compare with"), None
        interval = percentile_interval(self.average_draws[:, i] - self.average_draws[:, self.best])
        differing = sum(int((np.abs(d) > ROUNDING).sum()) for d in self._differences(i).values())
        difference = 100 * float(self.averages[i] - self.averages[self.best])
        return Estimate(difference, interval.times(100)), indistinguishable(interval, differing)

    def _differences(self, i: int) -> dict[str, FloatArray]:
        """Item by item, this row minus the best, per task."""
        return {t.task: t.outcomes[:, i] - t.outcomes[:, self.best] for t in self.tasks}

    def _smallest_detectable_difference(self) -> float | None:
        """From the median standard error of the methods' differences to the best."""
        if min(len(task.outcomes) for task in self.tasks) < 2:
            return None
        errors = [paired_standard_error(self._differences(i), self.weights) for i in self.ranked if i != self.best]
        positive = [error for error in errors if error > 0]
        return 100 * smallest_detectable_difference(median(positive)) if positive else None

    def _notes(self) -> list[str]:
        notes = []
        if not any(record.role == "base" for record in self.records):
            notes.append("The base model has no row: it was not evaluated.")
        experts = expert_rows(self.records)
        missing = [c for c in self.capabilities if len(experts.get(c, [])) != 1]
        if missing:
            notes.append(
                f"No retention of {', '.join(missing)}, hence no average retention: it needs exactly one "
                "evaluated expert of each capability."
            )
        on_test = sorted(self.labels[r.key] for r in self.records if r.role == "method" and chosen_on_test(r))
        if on_test:
            notes.append(f"Not ranked, since the hyper-parameters were chosen on test items: {', '.join(on_test)}.")
        return notes + evaluation_notes(self.records, self.labels)


def how_chosen(selection: Mapping[str, Any]) -> str:
    """How a row's hyper-parameters were chosen, in a few words; empty where there are none to choose."""
    how = str(selection.get("how") or "")
    if how != "tuned":
        return how
    details = [f"{selection['trials']} trials"] if selection.get("trials") is not None else []
    details += [str(selection["split"])] if selection.get("split") is not None else []
    return f"tuned ({', '.join(details)})" if details else how


def chosen_on_test(record: Record) -> bool:
    """Whether the hyper-parameters were tuned on test items, which makes the scores on them too high."""
    return record.selection.get("how") == "tuned" and record.selection.get("split") == "test"


def _set_hyperparameters(recipe: Mapping[str, Any]) -> dict[str, Any]:
    values = recipe.get("hyperparameters") or {}
    return {name: values[name] for name in sorted(values) if values[name] is not None}


def _mean(arrays: Iterable[FloatArray]) -> FloatArray:
    """Elementwise mean, two arrays in memory at a time: draws of many tasks (MMLU has 57) are large."""
    iterator = iter(arrays)
    total, count = next(iterator).copy(), 1
    for array in iterator:
        total += array
        count += 1
    return total / count


def _rounded(value: float) -> float:
    return round(float(value) / ROUNDING) * ROUNDING
