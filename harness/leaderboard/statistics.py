"""How sure a score is: intervals from items, the paired bootstrap over items, retention.

Scores are fractions in 0..1. Items are a sample of the items that could have been asked, tasks are fixed
strata: an interval says what other items of the same tasks might have shown (Miller 2024, "Adding Error Bars
to Evals", arXiv 2411.00640). It says nothing of other training seeds or other experts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
DRAWS = 10_000
SEED = 0
POWER = 0.8

ROUNDING = 1e-9
"""Scores that differ by less are the same number, summed in another order."""

FEWEST_DIFFERING_ITEMS = 6
"""Below it no paired test reaches 5 %: with k items that differ, the smallest two-sided p of a sign test is
2^(1-k)."""

_INDICES_AT_ONCE = 2_000_000


_quantile = NormalDist().inv_cdf
"""Quantiles of the standard normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An interval that holds the true value with probability `CONFIDENCE`, both ends included."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def contains(self, value: float) -> bool:
        return self.low - ROUNDING <= value <= self.high + ROUNDING

    def times(self, factor: float) -> "Interval":
        return Interval(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; where it cannot be known, neither, but the reason."""

    value: float | None = None
    interval: Interval | None = None
    reason: str | None = None


def wilson_interval(mean: float, items: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the probability behind `items` outcomes of 0 or 1 whose mean is `mean`.

    Unlike mean ± z·SE it stays within 0..1, is not empty at 0 or 1, and covers as promised with few items.

    Source: Wilson 1927, JASA 22:209-212; recommended by Brown, Cai and DasGupta 2001, Statistical Science
    16:101-133.
    """
    z = _quantile((1 + confidence) / 2)
    shrink = 1 + z * z / items
    centre = (mean + z * z / (2 * items)) / shrink
    half = z / shrink * float(np.sqrt(mean * (1 - mean) / items + z * z / (4 * items * items)))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(outcomes: FloatArray, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the expected outcome of one task, from outcomes in 0..1, shape (items,).

    Outcomes of 0 and 1: Wilson. Graded outcomes: mean ± z·SE by the central limit theorem (Miller
    2024). A single graded item has no standard error: there Wilson too, which is wide enough, since no
    variable in 0..1 with mean p varies more than a coin with probability p.
    """
    mean = float(outcomes.mean())
    if len(outcomes) < 2 or bool(np.isin(outcomes, (0.0, 1.0)).all()):
        return wilson_interval(mean, len(outcomes), confidence)
    half = _quantile((1 + confidence) / 2) * float(outcomes.std(ddof=1)) / float(np.sqrt(len(outcomes)))
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def weighted_mean_interval(means: Sequence[float], intervals: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """Interval of Σ w·mean over independent strata (tasks or capabilities), from each stratum's own interval;
    w ≥ 0.

    The distances between each mean and its bounds add up in quadrature. With intervals mean ± z·SE this is
    the stratified normal interval, z·√Σ(w·SE)² (Miller 2024); with Wilson's it keeps their good
    behaviour near 0 and 1, and it is Wilson's for one stratum. Preferred to a bootstrap of one score, which
    is as wide only where items abound and has no width where every item is solved.

    Source: Zou, Huang and Zhang 2009, Computational Statistics & Data Analysis 53:1080-1085.
    """
    mean, low, high, weight = (
        np.array(values) for values in (means, [i.low for i in intervals], [i.high for i in intervals], weights)
    )
    centre = float(weight @ mean)
    return Interval(
        centre - float(np.sqrt(((weight * (mean - low)) ** 2).sum())),
        centre + float(np.sqrt(((weight * (high - mean)) ** 2).sum())),
    )


def bootstrap_means(task: str, outcomes: FloatArray, draws: int = DRAWS, seed: int = SEED) -> FloatArray:
    """Means of one task over resampled items, the same items for every row (paired): shape (draws, rows).

    Args:
        task: its name, which seeds its own generator, so that a task's draws do not depend on which others
            there are.
        outcomes: shape (items, rows).

    A draw is a multinomial count of items; counts @ outcomes / items gives all rows' means at once. Memory is
    bounded by drawing a few million indices at a time.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13; paired, for
    comparing systems on one test set: Koehn 2004, EMNLP, 388-395.
    """
    items = len(outcomes)
    generator = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")])
    means = np.empty((draws, outcomes.shape[1]))
    at_once = max(1, _INDICES_AT_ONCE // items)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        indices = generator.integers(0, items, size=(size, items))
        indices += items * np.arange(size)[:, None]
        counts = np.bincount(indices.ravel(), minlength=size * items).reshape(size, items)
        means[start : start + size] = counts.astype(np.float64) @ outcomes / items
    return means


def percentile_interval(draws: FloatArray, confidence: float = CONFIDENCE) -> Interval:
    """The middle `confidence` of bootstrap draws, shape (draws,) (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def indistinguishable(difference: Interval, differing_items: int) -> bool:
    """Whether two rows cannot be told apart on these items.

    They cannot where the paired bootstrap's interval of their difference contains 0. Nor can they where fewer
    than `FEWEST_DIFFERING_ITEMS` items differ, whatever the bootstrap says: it only repeats the few items
    that it saw.
    """
    return differing_items < FEWEST_DIFFERING_ITEMS or difference.contains(0.0)


def paired_standard_error(differences: Mapping[str, FloatArray], weights: Mapping[str, float]) -> float:
    """Standard error of a weighted mean of tasks' mean differences between two rows on the same items.

    Args:
        differences: per task, one row's outcomes minus the other's, shape (items,), at least two items.
        weights: per task, its weight in the average.

    Source: Miller 2024, on paired differences; variances add over strata.
    """
    variances = [weights[task] ** 2 * d.var(ddof=1) / len(d) for task, d in differences.items()]
    return float(np.sqrt(sum(variances)))


def smallest_detectable_difference(
    standard_error: float, power: float = POWER, confidence: float = CONFIDENCE
) -> float:
    """The true difference that a two-sided test at 1 - `confidence` finds with probability `power`.

    Args:
        standard_error: of the paired difference.

    Source: Miller 2024, on power analysis: (z of the test + z of the power) · SE.
    """
    return (_quantile((1 + confidence) / 2) + _quantile(power)) * standard_error


def retention(merged: FloatArray, expert: FloatArray, chance: float) -> FloatArray:
    """Share of an expert's score above chance that a merged model keeps: (m - c) / (e - c), elementwise.

    1 is the expert's own score, 0 is guessing; nothing is clipped. Without subtracting chance, multiple
    choice looks better than it is: 0.45 against 0.65 is 0.69 plain, but 0.50 with four options.
    """
    return (merged - chance) / (expert - chance)
