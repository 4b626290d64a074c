"""Chooses hyper-parameters on validation items, from declared values, one option after the other."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The values chosen for one method's configuration."""

    values: dict[str, float]
    trials: int
    """Number of distinct settings that were evaluated."""
    objective: float
    """The best one's mean over capabilities, in 0..100."""


def choose(
    grid: Mapping[str, Sequence[float]],
    defaults: Mapping[str, float],
    objective: Callable[[dict[str, float]], float],
) -> Choice:
    """Try each option's values in turn, with earlier options at their best and later ones at their defaults.

    Args:
        grid: the values of each option, in the order in which options are tried.
        defaults: the default of each of these options.
        objective: what to maximise, given a value of each option.
    """
    tried: dict[tuple[tuple[str, float], ...], float] = {}
    best = {option: defaults[option] for option in grid}
    best_score = float("-inf")
    for option, values in grid.items():
        scores = []
        for value in values:
            setting = {**best, option: value}
            key = tuple(sorted(setting.items()))
            if key not in tried:
                tried[key] = objective(setting)
            scores.append(tried[key])
        best_score = max(scores)
        best[option] = values[scores.index(best_score)]
    return Choice(best, len(tried), best_score)


def as_yaml(choices: Mapping[str, Choice], about: Mapping[str, Any]) -> str:
    """The file of a configuration group `tuned`, the same text for the same choices."""
    import yaml

    body = {
        name: {
            "values": dict(choice.values),
            "trials": choice.trials,
            "split": about["split"],
            "objective": round(choice.objective, 2),
        }
        for name, choice in sorted(choices.items())
    }
    head = (
        f"# Hyper-parameters for zoo {about['zoo']} and suite {about['suite']}, chosen on its {about['split']} items.\n"
        f"# Made by: {about['command']}\n"
    )
    return head + str(yaml.safe_dump({"choices": body}, sort_keys=False))
