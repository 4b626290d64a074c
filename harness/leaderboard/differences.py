"""Paired comparisons between rows: on the same items, and by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.leaderboard.statistics import (
    Design,
    Estimate,
    FloatArray,
    TaskItems,
    contributions,
    mean_of_replicates,
    normal_interval,
    sign_flip_p_values,
    standard_errors,
)

Replicate = tuple[int, int | None]
"""A training seed, and the method's own seed where that is what varies."""


@dataclass(frozen=True)
class Difference:
    """One row minus another, in points."""

    over_items: Estimate
    standard_error: float
    """Of that; NaN where a task has a single cluster."""
    over_seeds: Estimate
    """Mean of the differences paired by seed; blank where fewer than two seeds are common."""
    seeds_p_value: float | None
    p_value: float
    """Two-sided. With several seeds the larger of the items' and the seeds' own: rows are told apart only where other
    items and other seeds would both show it (intersection-union test; Berger 1982, Technometrics 24:295-300)."""


class Differences:
    """Compares rows by any weighted mean of tasks."""

    def __init__(
        self,
        tasks: Sequence[TaskItems],
        design: Design,
        replicates: Sequence[Mapping[Replicate, Mapping[str, float]]],
    ) -> None:
        """
        Args:
            tasks: outcomes of all rows.
            design: of their items.
            replicates: per row, of each of its seeds the mean of every task, in 0..1.
        """
        self._tasks = tasks
        self._design = design
        self._replicates = replicates

    def compare(self, pairs: Sequence[tuple[int, int]], weights: Mapping[str, float]) -> list[Difference]:
        """The first row of each pair minus the second, by Σ weight·mean of the task."""
        if not pairs:
            return []
        first, second = (list(rows) for rows in zip(*pairs, strict=True))
        parts = contributions(self._tasks, weights, self._design.clusters)
        p_values = sign_flip_p_values(parts[:, first] - parts[:, second])
        by_task = [task.outcomes[:, first] - task.outcomes[:, second] for task in self._tasks]
        errors = standard_errors(self._tasks, weights, self._design, by_task)
        means = parts.sum(axis=0)
        return [
            self._difference(i, j, weights, float(means[i] - means[j]), float(error), float(p_value))
            for (i, j), error, p_value in zip(pairs, errors, p_values, strict=True)
        ]

    def by_seed(self, i: int, weights: Mapping[str, float]) -> dict[Replicate, float]:
        """Row i's weighted mean of each of its seeds, in 0..1."""
        return {
            replicate: sum(weight * means[task] for task, weight in weights.items())
            for replicate, means in self._replicates[i].items()
        }

    def _difference(
        self, i: int, j: int, weights: Mapping[str, float], difference: float, error: float, p_value: float
    ) -> Difference:
        interval = None if np.isnan(error) else normal_interval(difference, error).times(100)
        own, other = self.by_seed(i, weights), self.by_seed(j, weights)
        paired = _paired(own, other)
        over_seeds, seeds_p_value = Estimate(reason="fewer than two seeds in common"), None
        if len(paired) > 1:
            mean, seeds_interval, seeds_p_value = mean_of_replicates(paired)
            over_seeds = Estimate(100 * mean, None if seeds_interval is None else seeds_interval.times(100))
        return Difference(
            Estimate(100 * difference, interval),
            100 * error,
            over_seeds,
            seeds_p_value,
            max(p_value, seeds_p_value or 0.0),
        )


def replicate_means(
    members: Mapping[int, Sequence[int]], masks: Sequence[int], means: Mapping[str, FloatArray]
) -> dict[Replicate, dict[str, float]]:
    """Of each seed of a row the mean of every task. What varies are training seeds, or with one of those the masks.

    Args:
        members: the row's records by training seed.
        masks: every record's own seed of the method.
        means: per task, shape (records,).
    """
    if len(members) == 1:
        ((seed, records),) = members.items()
        if len(records) > 1:
            return {(seed, masks[r]): {task: float(values[r]) for task, values in means.items()} for r in records}
    return {
        (seed, None): {task: float(values[list(records)].mean()) for task, values in means.items()}
        for seed, records in members.items()
    }


def _paired(own: Mapping[Replicate, float], other: Mapping[Replicate, float]) -> list[float]:
    """Differences at the seeds that both have; a row without a seed of its own is the same at all seeds of another."""
    if len(own) == 1 or len(other) == 1:
        (only,) = own if len(own) == 1 else other
        many = other if len(own) == 1 else own
        if only[1] is not None or len(many) == 1 or any(seed != only[0] or mask is None for seed, mask in many):
            return []
        return [own.get(each, next(iter(own.values()))) - other.get(each, next(iter(other.values()))) for each in many]
    return [own[each] - other[each] for each in sorted(own.keys() & other.keys(), key=str)]
