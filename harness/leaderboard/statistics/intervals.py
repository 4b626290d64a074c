"""How sure a score is: intervals from items, retention, power.

Scores are fractions in 0..1. Items are a sample of the items that could have been asked, tasks are fixed
strata: an interval says what other items of the same tasks might have shown (Miller 2024, "Adding Error Bars
to Evals", arXiv 2411.00640). It says nothing of other training seeds or other experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
"""A difference counts where its p-value is at most this."""
POWER = 0.8

ROUNDING = 1e-9
"""Scores that differ by less are the same number, summed in another order."""

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


def wilson_interval(mean: float, items: float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the probability behind `items` outcomes of 0 or 1 whose mean is `mean`.

    `items` may be an effective number, a fraction.

    Unlike mean ± z·SE it stays within 0..1, is not empty at 0 or 1, and covers as promised with few items.

    Source: Wilson 1927, JASA 22:209-212; recommended by Brown, Cai and DasGupta 2001, Statistical Science
    16:101-133.
    """
    z = _quantile((1 + confidence) / 2)
    shrink = 1 + z * z / items
    centre = (mean + z * z / (2 * items)) / shrink
    half = z / shrink * float(np.sqrt(mean * (1 - mean) / items + z * z / (4 * items * items)))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(outcomes: FloatArray, standard_error: float | None = None, clusters: int | None = None) -> Interval:
    """Interval of the expected outcome of one task, from outcomes in 0..1, shape (items,).

    Outcomes of 0 and 1: Wilson, for as many independent items as have the same standard error (Korn and Graubard 1998,
    Survey Methodology 24:193-201), and never for more than there are. Graded outcomes: mean ± z·SE by the central
    limit theorem (Miller 2024). Where there is no standard error (one item, or one cluster), Wilson for one item,
    which is wide enough, since no variable in 0..1 with mean p varies more than a coin with probability p.

    Args:
        standard_error: of the mean, from clusters and strata; None where items are independent.
        clusters: how many the items form, where that is not one each.
    """
    mean, items = float(outcomes.mean()), len(outcomes)
    if items < 2 or (standard_error is not None and np.isnan(standard_error)):
        return wilson_interval(mean, 1)
    independent = float(outcomes.std(ddof=1)) / float(np.sqrt(items))
    error = independent if standard_error is None else standard_error
    if not bool(np.isin(outcomes, (0.0, 1.0)).all()):
        interval = normal_interval(mean, error)
        return Interval(max(0.0, interval.low), min(1.0, interval.high))
    if standard_error is None or error == 0.0:
        return wilson_interval(mean, clusters or items)
    return wilson_interval(mean, items * min(1.0, (independent / error) ** 2))


def normal_interval(mean: float, standard_error: float, confidence: float = CONFIDENCE) -> Interval:
    """mean ± z·SE, by the central limit theorem (Miller 2024)."""
    half = _quantile((1 + confidence) / 2) * standard_error
    return Interval(mean - half, mean + half)


def weighted_mean_interval(
    means: Sequence[float],
    intervals: Sequence[Interval],
    weights: Sequence[float],
    correlations: FloatArray | None = None,
) -> Interval:
    """Interval of Σ w·mean over tasks or capabilities, from the interval of each; w ≥ 0.

    The distances between each mean and its bounds add up as standard errors do: in quadrature where the means are
    independent. With intervals mean ± z·SE this is the normal interval, z·√Σ(w·SE)² (Miller 2024); with Wilson's it
    keeps their good behaviour near 0 and 1, and it is Wilson's for one task. Preferred to a bootstrap of one score,
    which is as wide only where items abound and has no width where every item is solved.

    Args:
        correlations: between the means, shape (tasks, tasks); None where they are independent.

    Source: Zou, Huang and Zhang 2009, Computational Statistics & Data Analysis 53:1080-1085; with correlations Zou
    2007, Psychological Methods 12:399-413.
    """
    mean, low, high, weight = (
        np.array(values) for values in (means, [i.low for i in intervals], [i.high for i in intervals], weights)
    )
    centre = float(weight @ mean)
    between = np.eye(len(mean)) if correlations is None else correlations
    below, above = weight * (mean - low), weight * (high - mean)
    return Interval(
        centre - float(np.sqrt(max(0.0, below @ between @ below))),
        centre + float(np.sqrt(max(0.0, above @ between @ above))),
    )


def percentile_interval(draws: FloatArray, confidence: float = CONFIDENCE) -> Interval:
    """The middle `confidence` of bootstrap draws, shape (draws,) (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


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


def geometric_mean(values: FloatArray) -> FloatArray:
    """Geometric mean over the first axis of values clipped at 0: 0 where one of them is."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(np.clip(values, 0.0, None)).mean(axis=0)))


def fieller_interval(
    numerator: float, denominator: float, covariance: FloatArray, confidence: float = CONFIDENCE
) -> Interval | None:
    """Interval of a ratio of two normal estimates; None where it has no bounds, since the denominator may be 0.

    Unlike the bootstrap's percentiles it stays right where the denominator is only a few standard errors from 0.

    Args:
        covariance: of numerator and denominator, shape (2, 2).

    Source: Fieller 1954, Journal of the Royal Statistical Society B 16:175-185.
    """
    z2 = _quantile((1 + confidence) / 2) ** 2
    a = denominator**2 - z2 * float(covariance[1, 1])
    b = numerator * denominator - z2 * float(covariance[0, 1])
    c = numerator**2 - z2 * float(covariance[0, 0])
    if a <= 0:
        return None
    root = float(np.sqrt(max(0.0, b * b - a * c)))
    return Interval((b - root) / a, (b + root) / a)
