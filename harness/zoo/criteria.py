"""Whether a set of models lies in the regime that merging is studied in: experts in their base's basin.

Criteria and thresholds are the project's own and were fixed before any method was compared on the set. They
speak of the models' scores alone, never of a method's, except for the plain average, whose gain says that
there is something to merge at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import GraftbenchError

BASE_RANGE = (25.0, 75.0)
LEAST_EXPERT_SCORE = 80.0
LEAST_EXPERT_GAIN = 20.0
LEAST_RETENTION = 50.0
"""Percent of the base's score that an expert keeps on the capabilities of others, on average."""


@dataclass(frozen=True)
class Criterion:
    """One criterion: what it asks, what was measured, and whether it holds."""

    text: str
    measured: str
    holds: bool


def check_criteria(
    base: Mapping[str, float], experts: Mapping[str, Mapping[str, float]], average: Mapping[str, float]
) -> list[Criterion]:
    """The criteria of a set whose experts are named by their capability.

    Args:
        base: the base's score, 0 to 100, by capability.
        experts: each expert's scores by capability; an expert's name is its own capability.
        average: the scores of the plain average of all experts.

    Raises:
        GraftbenchError: a score is missing.
    """
    _check_complete(base, experts, average)
    criteria = [_base_in_range(capability, score) for capability, score in base.items()]
    for name, scores in experts.items():
        criteria.append(_own_score(name, scores[name]))
        criteria.append(_own_gain(name, scores[name] - base[name]))
        criteria.append(_retention(name, retention(base, scores, name)))
    criteria.append(_average_beats_base(_mean(average), _mean(base)))
    return criteria


def retention(base: Mapping[str, float], scores: Mapping[str, float], own: str) -> float:
    """Percent of the base's score kept on the capabilities other than the expert's own, on average."""
    kept = [100.0 * scores[capability] / base[capability] for capability in base if capability != own]
    return sum(kept) / len(kept)


def _base_in_range(capability: str, score: float) -> Criterion:
    low, high = BASE_RANGE
    return Criterion(f"base on {capability}: between {low:.0f} and {high:.0f}", f"{score:.1f}", low <= score <= high)


def _own_score(name: str, score: float) -> Criterion:
    return Criterion(
        f"expert {name} on its own: at least {LEAST_EXPERT_SCORE:.0f}",
        f"{score:.1f}",
        score >= LEAST_EXPERT_SCORE,
    )


def _own_gain(name: str, gain: float) -> Criterion:
    return Criterion(
        f"expert {name} on its own: at least {LEAST_EXPERT_GAIN:.0f} above the base",
        f"{gain:+.1f}",
        gain >= LEAST_EXPERT_GAIN,
    )


def _retention(name: str, kept: float) -> Criterion:
    return Criterion(
        f"expert {name} on the others: keeps at least {LEAST_RETENTION:.0f} % of the base's score on average",
        f"{kept:.0f} %",
        kept >= LEAST_RETENTION,
    )


def _average_beats_base(average: float, base: float) -> Criterion:
    return Criterion(
        "plain average of the experts: better than the base on the mean of all capabilities",
        f"{average:.1f} against {base:.1f}",
        average > base,
    )


def _check_complete(
    base: Mapping[str, float], experts: Mapping[str, Mapping[str, float]], average: Mapping[str, float]
) -> None:
    for model, scores in {"base": base, "average": average, **experts}.items():
        missing = [capability for capability in experts if capability not in scores]
        if missing:
            raise GraftbenchError(f"no score of {model} on {', '.join(missing)}; evaluate it before checking the set")
    strangers = [capability for capability in base if capability not in experts]
    if strangers:
        raise GraftbenchError(f"no expert for {', '.join(strangers)}; the criteria need one per capability of the base")
    zero = [capability for capability, score in base.items() if score <= 0]
    if zero:
        raise GraftbenchError(f"the base scores 0 on {', '.join(zero)}, so retention there has no meaning")


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)
