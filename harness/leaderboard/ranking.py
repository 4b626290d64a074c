"""From records to a board: every number of every row, and the ranks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from harness.errors import GraftbenchError
from harness.leaderboard.board import GROUPS, Board, Comparison, Row, Seeds
from harness.leaderboard.comparable import align_outcomes, check_comparable, unique_records
from harness.leaderboard.costs import costs_of
from harness.leaderboard.differences import Difference, Differences, replicate_means
from harness.leaderboard.eligibility import board_seeds, how_chosen, set_aside
from harness.leaderboard.labels import row_labels
from harness.leaderboard.notes import evaluation_notes
from harness.leaderboard.replicates import Replicates, mask_seed, replicates_of
from harness.leaderboard.retention import Retentions, base_row, expert_rows
from harness.leaderboard.statistics import (
    ROUNDING,
    SIGNIFICANCE,
    Estimate,
    FloatArray,
    Interval,
    bootstrap_means,
    correlations,
    holm,
    mean_interval,
    rank_intervals,
    smallest_detectable_difference,
    standard_errors,
    weighted_mean_interval,
)
from harness.results import Record

_NO_BEST = "no method to compare with"


def build_board(records: Sequence[Record]) -> Board:
    """Rank records; the order in which they come does not matter.

    The best is sought among methods only, since base, experts and multi-task reference are no merges and
    controls are deliberately crippled ones. Every other row is still compared with it: a control that cannot
    be told from the best method is a finding. Methods that must not be ranked have a row that says why.

    Raises:
        GraftbenchError: there are no records, or records that must not be ranked together; which and why is
            named.
    """
    unique = unique_records(records)
    if not unique:
        raise GraftbenchError("there are no records to rank; evaluate a model first, for example with graftbench run")
    check_comparable(unique)
    return Ranking(unique).board()


class Ranking:
    """The numbers that rows share: point estimates, bootstrap draws and tests of all rows."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.all_records = records
        self.rows = replicates_of(records)
        self.records = [row.record for row in self.rows]
        self.seeds = board_seeds(self.rows)
        of_records, self.design = align_outcomes(records)
        self.members = [self._members(row) for row in self.rows]
        self.tasks = [replace(task, outcomes=self._means(task.outcomes)) for task in of_records]
        self.labels = row_labels(self.records)
        self.capabilities = tuple(dict.fromkeys(task.capability for task in self.tasks))
        self.tasks_of = {c: [task for task in self.tasks if task.capability == c] for c in self.capabilities}
        self.weights_of = {c: {t.task: 1 / len(tasks) for t in tasks} for c, tasks in self.tasks_of.items()}
        self.weights = {
            task: w / len(self.capabilities) for weights in self.weights_of.values() for task, w in weights.items()
        }
        self.scores = {c: _mean(t.outcomes.mean(axis=0) for t in self.tasks_of[c]) for c in self.capabilities}
        self.averages = _mean(self.scores.values())
        drawn = bootstrap_means(self.tasks, self.design)
        self.draws = {c: _mean(drawn[t.task] for t in self.tasks_of[c]) for c in self.capabilities}
        self.intervals = {
            t.task: [
                mean_interval(t.outcomes[:, i], error, clusters)
                for i, (error, clusters) in enumerate(zip(*self._errors(t), strict=True))
            ]
            for t in self.tasks
        }
        self.correlations = correlations(self.tasks, self.design)
        self.aside = set_aside(self.rows, self.seeds)
        self.order = sorted(range(len(self.rows)), key=self._place)
        self.ranked = [i for i in self.order if self.records[i].role == "method" and i not in self.aside]
        self.best = self.ranked[0] if self.ranked else None
        masks = [mask_seed(record) for record in records]
        means = {task.task: task.outcomes.mean(axis=0) for task in of_records}
        replicates = [replicate_means(members, masks, means) for members in self.members]
        self.differences = Differences(self.tasks, self.design, replicates)
        self.base = base_row(self.records)
        self.retentions = Retentions(
            records=self.records,
            seeds=[tuple(members) for members in self.members],
            scores=self.scores,
            draws=self.draws,
            chances={c: float(np.mean([t.chance for t in self.tasks_of[c]])) for c in self.capabilities},
        )

    def board(self) -> Board:
        first = self.all_records[0]
        metrics = {task.task: task.metric for task in first.tasks}
        to_best = self._against_best()
        corrected = self._corrected(to_best)
        worse = self._below_base()
        places = rank_intervals(_mean(self.draws.values())[:, self.ranked]) if self.ranked else []
        place_of = dict(zip(self.ranked, places, strict=True))
        return Board(
            zoo=str(first.zoo.get("name", "unnamed")),
            suite=str(first.suite.get("name", "unnamed")),
            split=str(first.suite["split"]),
            engine=first.engine,
            digests={"zoo": str(first.zoo["digest"]), "suite": str(first.suite["digest"])},
            training_seeds=self.seeds if any("training_seed" in record.zoo for record in self.all_records) else (),
            capabilities=self.capabilities,
            tasks={
                task.task: {
                    "capability": task.capability,
                    "metric": metrics[task.task],
                    "chance": task.chance,
                    "items": len(task.outcomes),
                    "clusters": len(np.unique(task.clusters)),
                }
                for task in self.tasks
            },
            rows=tuple(
                self._row(i, to_best.get(i), corrected.get(i), place_of.get(i), worse.get(i, ())) for i in self.order
            ),
            best=None if self.best is None else self.labels[self.records[self.best].key],
            comparisons=tuple(self._comparisons()),
            smallest_detectable_difference=self._smallest_detectable_difference(to_best),
            notes=tuple(self._notes()),
        )

    def _row(
        self,
        i: int,
        to_best: Difference | None,
        corrected: float | None,
        places: tuple[int, int] | None,
        worse: tuple[str, ...],
    ) -> Row:
        record, members = self.records[i], self.rows[i]
        seeds = list(self.differences.by_seed(i, self.weights).values())
        p_value = None if to_best is None or i == self.best else to_best.p_value
        deciding = p_value if corrected is None else corrected
        retentions = {c: self.retentions.of(i, c) for c in self.capabilities}
        own = [self.all_records[j] for seed in members.members for j in members.members[seed]]
        costs = costs_of(own, record.selection)
        return Row(
            key=record.key,
            label=self.labels[record.key],
            role=record.role,
            rank=self._rank(i),
            rank_interval=places,
            unranked=self.aside.get(i),
            expert_of=record.capability,
            capabilities={
                c: Estimate(100 * float(self.scores[c][i]), self._interval(i, self.weights_of[c]).times(100))
                for c in self.capabilities
            },
            average=Estimate(100 * float(self.averages[i]), self._interval(i, self.weights).times(100)),
            difference_to_best=Estimate(reason=_NO_BEST) if to_best is None else to_best.over_items,
            p_value=p_value,
            corrected_p_value=corrected,
            tied_with_best=None if to_best is None else deciding is None or deciding > SIGNIFICANCE,
            retention=self.retentions.mean(i),
            geometric_retention=self.retentions.geometric_mean(i),
            capability_retention=retentions,
            worst_capability=_worst(retentions),
            recovered={c: self.retentions.recovered(i, c) for c in self.capabilities},
            negative_transfer=worse,
            chosen=how_chosen(record.selection),
            merge_seconds=costs.merge_seconds,
            costs=costs,
            seeds=Seeds(
                count=sum(map(len, self.members[i].values())),
                training=tuple(self.members[i]) if "training_seed" in record.zoo else (),
                masks=members.masks,
                standard_deviation=100 * float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None,
                difference_to_best=Estimate(reason=_NO_BEST) if to_best is None else to_best.over_seeds,
                p_value=None if to_best is None or i == self.best else to_best.seeds_p_value,
            ),
            hyperparameters=_set_hyperparameters(record.recipe),
            recipe=record.recipe,
            versions=record.versions,
            records=tuple(each.key for each in own),
        )

    def _members(self, row: Replicates) -> dict[int, tuple[int, ...]]:
        """The records that count, by training seed: those of the board's seeds, or all where it has none of them."""
        common = {seed: found for seed, found in row.members.items() if seed in self.seeds}
        return common or row.members

    def _means(self, outcomes: FloatArray) -> FloatArray:
        """Outcomes of rows from those of records, (items, rows): every training seed counts the same."""
        return np.stack(
            [
                np.mean([outcomes[:, list(found)].mean(axis=1) for found in members.values()], axis=0)
                for members in self.members
            ],
            axis=1,
        )

    def _errors(self, task: Any) -> tuple[Iterable[float | None], Iterable[int | None]]:
        """Per row, the standard error and the number of clusters, where items are not independent."""
        rows = task.outcomes.shape[1]
        strata = sum(task.task in stratum.tasks for stratum in self.design.strata)
        clusters = len(np.unique(task.clusters))
        if strata == 1 and clusters == len(task.outcomes):
            return [None] * rows, [None] * rows
        return list(standard_errors([task], {task.task: 1.0}, self.design)), [clusters] * rows

    def _place(self, i: int) -> tuple[int, float, str, str]:
        """Sort key: group, average (equal up to rounding is equal), label, key."""
        record = self.records[i]
        return GROUPS.index(record.role), -_rounded(self.averages[i]), self.labels[record.key], record.key

    def _rank(self, i: int) -> int | None:
        if i not in self.ranked:
            return None
        return 1 + sum(_rounded(self.averages[j]) > _rounded(self.averages[i]) for j in self.ranked)

    def _interval(self, i: int, weights: Mapping[str, float]) -> Interval:
        """Of row i's weighted mean over tasks."""
        used = [n for n, task in enumerate(self.tasks) if weights.get(task.task)]
        tasks = [self.tasks[n] for n in used]
        return weighted_mean_interval(
            [float(task.outcomes[:, i].mean()) for task in tasks],
            [self.intervals[task.task][i] for task in tasks],
            [weights[task.task] for task in tasks],
            None if self.correlations is None else self.correlations[i][np.ix_(used, used)],
        )

    def _against_best(self) -> dict[int, Difference]:
        """Every row minus the best; nothing where there is none."""
        if self.best is None:
            return {}
        pairs = [(i, self.best) for i in range(len(self.rows))]
        return dict(enumerate(self.differences.compare(pairs, self.weights)))

    def _corrected(self, to_best: Mapping[int, Difference]) -> dict[int, float]:
        """Holm's p-values of the ranked methods against the best."""
        others = [i for i in self.ranked if i != self.best]
        return dict(zip(others, holm([to_best[i].p_value for i in others]), strict=True))

    def _comparisons(self) -> list[Comparison]:
        pairs = [(i, j) for place, i in enumerate(self.ranked) for j in self.ranked[place + 1 :]]
        differences = self.differences.compare(pairs, self.weights)
        corrected = holm([difference.p_value for difference in differences])
        return [
            Comparison(
                first=self.labels[self.records[i].key],
                second=self.labels[self.records[j].key],
                difference=difference.over_items,
                seed_difference=difference.over_seeds,
                p_value=difference.p_value,
                corrected_p_value=p_value,
            )
            for (i, j), difference, p_value in zip(pairs, differences, corrected, strict=True)
        ]

    def _below_base(self) -> dict[int, tuple[str, ...]]:
        """The capabilities in which each row is significantly below the base."""
        if self.base is None:
            return {}
        rows = [i for i in range(len(self.rows)) if i != self.base and [*self.members[i]] == [*self.members[self.base]]]
        by_capability = [
            self.differences.compare([(i, self.base) for i in rows], self.weights_of[c]) for c in self.capabilities
        ]
        below = {}
        for i, differences in zip(rows, zip(*by_capability, strict=True), strict=True):
            corrected = holm([difference.p_value for difference in differences])
            below[i] = tuple(
                capability
                for capability, difference, p_value in zip(self.capabilities, differences, corrected, strict=True)
                if p_value <= SIGNIFICANCE and (difference.over_items.value or 0.0) < 0
            )
        return below

    def _smallest_detectable_difference(self, to_best: Mapping[int, Difference]) -> float | None:
        """From the median standard error of the methods' differences to the best."""
        errors = [to_best[i].standard_error for i in self.ranked if i != self.best]
        positive = [error for error in errors if error > 0]
        return smallest_detectable_difference(median(positive)) if positive else None

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
        reasons: dict[str, list[str]] = {self.aside[i]: [] for i in self.order if i in self.aside}
        for i in self.order:
            if i in self.aside:
                reasons[self.aside[i]].append(self.labels[self.records[i].key])
        notes += [f"Not ranked, since {reason}: {', '.join(sorted(names))}." for reason, names in reasons.items()]
        extra = [
            f"{self.labels[self.records[i].key]} ({', '.join(map(str, left_out))})"
            for i in self.order
            if (left_out := [seed for seed in self.rows[i].members if seed not in self.members[i]])
        ]
        if extra:
            notes.append(f"Training seeds left out, since most methods have no record of them: {', '.join(extra)}.")
        labels = {
            self.all_records[r].key: self.labels[self.records[i].key]
            for i, row in enumerate(self.rows)
            for found in row.members.values()
            for r in found
        }
        return notes + evaluation_notes(self.all_records, labels)


def _worst(retentions: Mapping[str, Estimate]) -> str | None:
    """The capability of the lowest retention; None where one is unknown."""
    known = {capability: each.value for capability, each in retentions.items() if each.value is not None}
    return min(known, key=lambda capability: known[capability]) if len(known) == len(retentions) else None


def _set_hyperparameters(recipe: Mapping[str, Any]) -> dict[str, Any]:
    values = recipe.get("hyperparameters") or {}
    return {name: values[name] for name in sorted(values) if values[name] is not None}


def _mean(arrays: Iterable[FloatArray]) -> FloatArray:
    """Elementwise mean, two arrays in memory at a time."""
    iterator = iter(arrays)
    total, count = next(iterator).copy(), 1
    for array in iterator:
        total += array
        count += 1
    return total / count


def _rounded(value: float) -> float:
    return round(float(value) / ROUNDING) * ROUNDING
