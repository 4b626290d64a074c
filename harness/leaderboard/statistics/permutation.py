"""Paired tests by flipping signs, and their correction for how many there are."""

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from harness.leaderboard.statistics.intervals import FloatArray

FLIPS = 100_000
"""Draws of the permutation test; where there are no more ways to flip than that, all of them are counted."""
SEED = 0

_TIED = 1e-9
"""Sums that differ by less, relative to the largest that is possible, are the same number summed in another order."""
_COMMON = 16
"""From so many differences of one size on, their sum is drawn as a count of coins."""
_TABLED = 8
"""Of rarer sizes so many have their sums looked up at once, by a random byte."""


def sign_flip_p_values(differences: FloatArray, draws: int = FLIPS, seed: int = SEED) -> FloatArray:
    """Two-sided p-values of paired differences, one a column: how often a sum of flipped signs is as far from 0.

    Under the null hypothesis the two models of a pair are exchangeable on every cluster of items, so that any pattern
    of signs was as likely as the one seen. A cluster's items are flipped together, since it is one entry here.

    Differences of equal size are interchangeable: of k of them a Binomial(k, 1/2) number keeps its sign. So the
    distribution of the sum is computed exactly where few sums are possible (for one task of right and wrong answers
    it is the exact McNemar test), and drawn otherwise, equal sizes as a count of coins. A drawn p-value counts the
    pattern seen among the draws, which keeps it valid. A column without any difference has p = 1.

    Args:
        differences: shape (clusters, pairs), what each cluster adds to the difference between two averages.

    Source: Fisher 1935, The Design of Experiments, section 21; for language tasks Dror et al. 2018, ACL, 1383-1392;
    the count of the pattern seen: Phipson and Smyth 2010, Statistical Applications in Genetics 9, article 39.
    """
    p_values = np.ones(differences.shape[1])
    for pair in range(differences.shape[1]):
        sizes, counts, total = _sizes(differences[:, pair])
        if not len(sizes):
            continue
        exact = np.prod(counts + 1.0) <= draws
        p_values[pair] = _exact(sizes, counts, total) if exact else _drawn(sizes, counts, total, draws, seed)
    return p_values


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values of one family of tests, in the same order: rejecting those of at most α makes any
    false rejection as rare as α.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected


def _sizes(differences: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """The different sizes among differences that are not zero, relative to the largest, how often each occurs, and
    the size of the sum."""
    largest = float(np.abs(differences).max(initial=0.0))
    if largest <= 1e-12:
        return np.empty(0), np.empty(0), 0.0
    relative = np.round(differences / largest, 10)
    relative = relative[relative != 0]
    sizes, counts = np.unique(np.abs(relative), return_counts=True)
    return sizes, counts.astype(np.float64), abs(float(relative.sum()))


def _exact(sizes: FloatArray, counts: FloatArray, total: float) -> float:
    """Over all sums that are possible, with their probabilities."""
    sums, logs = np.zeros(1), np.zeros(1)
    for size, count in zip(sizes, counts, strict=True):
        kept = np.arange(count + 1)
        probability = gammaln(count + 1) - gammaln(kept + 1) - gammaln(count - kept + 1) - count * np.log(2.0)
        sums = (sums[:, None] + size * (2 * kept - count)).ravel()
        logs = (logs[:, None] + probability).ravel()
    return min(1.0, float(np.exp(logs[_as_far(sums, sizes, counts, total)]).sum()))


def _drawn(sizes: FloatArray, counts: FloatArray, total: float, draws: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    sums = np.zeros(draws)
    common = counts >= _COMMON
    for size, count in zip(sizes[common], counts[common].astype(int).tolist(), strict=True):
        sums += size * (2.0 * _heads(generator, count, draws) - count)
    rare = np.repeat(sizes[~common], counts[~common].astype(int))
    signs = 2.0 * np.unpackbits(np.arange(2**_TABLED, dtype=np.uint8)[:, None], axis=1) - 1
    for start in range(0, len(rare), _TABLED):
        part = rare[start : start + _TABLED]
        sums += (signs[:, : len(part)] @ part)[generator.integers(0, 2**_TABLED, size=draws, dtype=np.uint8)]
    return (1 + int(_as_far(sums, sizes, counts, total).sum())) / (1 + draws)


def _heads(generator: np.random.Generator, coins: int, draws: int) -> FloatArray:
    """Binomial(coins, 1/2) numbers, shape (draws,): the ones among so many random bits."""
    total = np.zeros(draws)
    for _ in range(coins // 64):
        total += np.bitwise_count(generator.integers(0, 2**64, size=draws, dtype=np.uint64))
    if left := coins % 64:
        total += np.bitwise_count(generator.integers(0, 2**left, size=draws, dtype=np.uint64))
    return total


def _as_far(sums: FloatArray, sizes: FloatArray, counts: FloatArray, total: float) -> np.ndarray:
    return np.asarray(np.abs(sums) >= total - _TIED * float(sizes @ counts))
