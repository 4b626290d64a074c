"""The paired bootstrap over items: what other items of the same kind might have shown, for all models at once."""

import hashlib
from collections.abc import Sequence

import numpy as np

from harness.leaderboard.statistics.design import Design, Stratum, TaskItems
from harness.leaderboard.statistics.intervals import CONFIDENCE, ROUNDING, FloatArray

DRAWS = 10_000
SEED = 0

_INDICES_AT_ONCE = 2_000_000


def bootstrap_means(
    tasks: Sequence[TaskItems], design: Design, draws: int = DRAWS, seed: int = SEED
) -> dict[str, FloatArray]:
    """Each task's means over resampled clusters, the same clusters for every model (paired): shape (draws, models).

    As many clusters as a stratum has are drawn from it with replacement, whole. A stratum's name seeds its own
    generator, so that its draws do not depend on which others there are.

    A draw is a multinomial count of clusters; counts @ sums gives all models' sums at once. Memory is bounded by
    drawing a few million indices at a time.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6, 8 and 13; paired, for comparing
    systems on one test set: Koehn 2004, EMNLP, 388-395.
    """
    totals = {task.task: np.zeros((draws, task.outcomes.shape[1])) for task in tasks}
    sizes = {task.task: np.zeros((draws, 1)) for task in tasks}
    for stratum in design.strata:
        within = {task.task: _sums(task, design, stratum) for task in tasks if task.task in stratum.tasks}
        generator = np.random.default_rng([seed, *_number(stratum.name)])
        clusters = len(stratum.clusters)
        at_once = max(1, _INDICES_AT_ONCE // clusters)
        for start in range(0, draws, at_once):
            size = min(at_once, draws - start)
            indices = generator.integers(0, clusters, size=(size, clusters))
            indices += clusters * np.arange(size)[:, None]
            counts = np.bincount(indices.ravel(), minlength=size * clusters).reshape(size, clusters).astype(np.float64)
            for task, (outcomes, items) in within.items():
                totals[task][start : start + size] += counts @ outcomes
                sizes[task][start : start + size] += counts @ items
    return {task: total / sizes[task] for task, total in totals.items()}


def rank_intervals(averages: FloatArray, confidence: float = CONFIDENCE) -> list[tuple[int, int]]:
    """The places that each model takes in the middle `confidence` of bootstrap draws, shape (draws, models).

    Models of equal average share their places: the first of them counts for the low end, the last for the high end.

    Source: Goldstein and Spiegelhalter 1996, Journal of the Royal Statistical Society A 159:385-443.
    """
    rounded = np.round(averages / ROUNDING)
    tail = (1 - confidence) / 2
    intervals = []
    for model in range(averages.shape[1]):
        own = rounded[:, model : model + 1]
        first = 1 + (rounded > own).sum(axis=1)
        last = (rounded >= own).sum(axis=1)
        low = np.quantile(first, tail, method="inverted_cdf")
        intervals.append((int(low), int(np.quantile(last, 1 - tail, method="inverted_cdf"))))
    return intervals


def _sums(task: TaskItems, design: Design, stratum: Stratum) -> tuple[FloatArray, FloatArray]:
    """A task's outcomes summed within each of a stratum's clusters, and its items there."""
    place = np.full(design.clusters, -1)
    place[stratum.clusters] = np.arange(len(stratum.clusters))
    places = place[task.clusters]
    inside = places >= 0
    outcomes = np.zeros((len(stratum.clusters), task.outcomes.shape[1]))
    np.add.at(outcomes, places[inside], task.outcomes[inside])
    items = np.bincount(places[inside], minlength=len(stratum.clusters)).astype(np.float64)
    return outcomes, items[:, None]


def _number(name: str) -> list[int]:
    """A name as a seed."""
    return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")]
