"""The sampling design: which items are drawn together, from where, and the standard errors that follow.

An item belongs to a *cluster*: items that share a passage, or are one problem in two tasks (HumanEval and HumanEval+),
are drawn together. Clusters belong to a *stratum*, from which a fixed number of them was drawn: a task, a subject of
MMLU, or the problems that two tasks have in common.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.leaderboard.statistics.intervals import FloatArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class TaskItems:
    """One task's outcomes over all models."""

    task: str
    capability: str
    chance: float
    outcomes: FloatArray
    """Shape (items, models), in 0..1; items sorted by id."""
    clusters: IntArray
    """Shape (items,): the number of each item's cluster in the design."""


@dataclass(frozen=True)
class Stratum:
    """Clusters drawn from one place."""

    name: str
    clusters: IntArray
    """Their numbers, ascending."""
    tasks: tuple[str, ...]
    """The tasks that each of them has items of."""


@dataclass(frozen=True)
class Design:
    """The strata of a suite's items; every cluster lies in one."""

    clusters: int
    """How many there are."""
    strata: tuple[Stratum, ...]

    @property
    def independent(self) -> bool:
        """Whether no cluster has items of two tasks, so that the tasks' errors are independent."""
        return all(len(stratum.tasks) == 1 for stratum in self.strata)


def design_of(items: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[Design, dict[str, IntArray]]:
    """The design of a suite, and the number of each item's cluster.

    A stratum holds the clusters with items of the same subjects, so that any other sample of as many clusters has as
    many items of each task. Strata of a single cluster tell nothing of variance: those of the same tasks are pooled.

    Args:
        items: per task, of each item the cluster and the subject (the task itself, or one of a group's).
    """
    numbers = {name: n for n, name in enumerate(sorted({cluster for each in items.values() for cluster, _ in each}))}
    subjects: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for task, each in items.items():
        for name, subject in each:
            subjects[numbers[name]].add((task, subject))
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for cluster in range(len(numbers)):
        tasks, names = zip(*sorted(subjects[cluster]), strict=True)
        found[tuple(dict.fromkeys(tasks)), names].append(cluster)
    strata: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for (tasks, names), clusters in found.items():
        strata[tasks, names if len(clusters) > 1 else tasks] += clusters
    design = Design(
        len(numbers),
        tuple(
            Stratum(" + ".join(names), np.array(sorted(clusters)), tasks)
            for (tasks, names), clusters in sorted(strata.items())
        ),
    )
    return design, {task: np.array([numbers[cluster] for cluster, _ in each]) for task, each in items.items()}


def contributions(
    tasks: Sequence[TaskItems], weights: Mapping[str, float], clusters: int, values: Sequence[FloatArray] | None = None
) -> FloatArray:
    """What each cluster adds to Σ w·mean over tasks, shape (clusters, models): the sum over clusters is that mean.

    Args:
        tasks: the tasks.
        weights: each task's; a task without one counts nothing.
        clusters: their number in the design.
        values: in place of the tasks' outcomes, arrays of the same length.
    """
    columns = (tasks[0].outcomes if values is None else values[0]).shape[1]
    total = np.zeros((clusters, columns))
    for task, outcomes in zip(tasks, [t.outcomes for t in tasks] if values is None else values, strict=True):
        if weight := weights.get(task.task, 0.0):
            np.add.at(total, task.clusters, weight / len(outcomes) * outcomes)
    return total


def standard_errors(
    tasks: Sequence[TaskItems], weights: Mapping[str, float], design: Design, values: Sequence[FloatArray] | None = None
) -> FloatArray:
    """Standard errors of Σ w·mean over tasks, shape (models,), from clusters within strata.

    Each cluster's part of the error is the sum of its items' deviations from their task's mean, so that tasks of
    unequal clusters count as the ratios that they are. With a cluster for each item and a stratum for each task it is
    √Σ w²s²/n. NaN where a stratum that counts has a single cluster.

    Args:
        values: in place of the tasks' outcomes, such as differences between two models on the same items.

    Source: Cochran 1977, Sampling Techniques, chapters 5 and 11 (stratified and ratio estimates); clusters as in
    Miller 2024, arXiv 2411.00640, section 2.2.
    """
    used = [t.outcomes for t in tasks] if values is None else values
    deviations = contributions(tasks, weights, design.clusters, [each - each.mean(axis=0) for each in used])
    variance = np.zeros(deviations.shape[1])
    for stratum in design.strata:
        if not any(weights.get(task, 0.0) for task in stratum.tasks):
            continue
        of_stratum = deviations[stratum.clusters]
        count = len(of_stratum)
        if count < 2:
            return np.full(deviations.shape[1], np.nan)
        variance += count / (count - 1) * ((of_stratum - of_stratum.mean(axis=0)) ** 2).sum(axis=0)
    return np.sqrt(variance)


def correlations(tasks: Sequence[TaskItems], design: Design) -> FloatArray | None:
    """Correlations between the tasks' means, shape (models, tasks, tasks), from clusters with items of several tasks;
    None where there are no such clusters."""
    if design.independent:
        return None
    parts = np.stack(
        [
            contributions([task], {task.task: 1.0}, design.clusters, [task.outcomes - task.outcomes.mean(axis=0)])
            for task in tasks
        ],
        axis=2,
    )
    covariances = np.zeros((parts.shape[1], len(tasks), len(tasks)))
    for stratum in design.strata:
        centred = parts[stratum.clusters]
        centred = centred - centred.mean(axis=0)
        count = len(stratum.clusters)
        covariances += count / max(count - 1, 1) * np.einsum("cmt,cmu->mtu", centred, centred)
    deviations = np.sqrt(np.einsum("mtt->mt", covariances))
    scale = deviations[:, :, None] * deviations[:, None, :]
    between = np.divide(covariances, scale, out=np.zeros_like(covariances), where=scale > 0)
    between[:, np.arange(len(tasks)), np.arange(len(tasks))] = 1.0
    return np.clip(between, -1.0, 1.0)
