"""Chooses hyper-parameters on validation items, from declared values, one option after the other; and its cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One setting, evaluated."""

    objective: float
    """Its mean over capabilities, in 0..100."""
    seconds: float
    """Wall time of its merges and evaluations, when they were made."""


@dataclass(frozen=True)
class Choice:
    """The values chosen for one method's configuration."""

    values: dict[str, float]
    trials: int
    """Number of distinct settings that were evaluated."""
    objective: float
    """The best one's mean over capabilities, in 0..100."""
    seconds: float
    """Wall time of all of them: the price of the choice."""


def choose(
    grid: Mapping[str, Sequence[float]],
    defaults: Mapping[str, float],
    evaluate: Callable[[dict[str, float]], Trial],
) -> Choice:
    """Try each option's values in turn, with earlier options at their best and later ones at their defaults.

    Args:
        grid: the values of each option, in the order in which options are tried.
        defaults: the default of each of these options.
        evaluate: tries a value of each option.
    """
    tried: dict[tuple[tuple[str, float], ...], Trial] = {}
    best = {option: defaults[option] for option in grid}
    best_score = float("-inf")
    for option, values in grid.items():
        scores = []
        for value in values:
            setting = {**best, option: value}
            key = tuple(sorted(setting.items()))
            if key not in tried:
                tried[key] = evaluate(setting)
            scores.append(tried[key].objective)
        best_score = max(scores)
        best[option] = values[scores.index(best_score)]
    return Choice(best, len(tried), best_score, sum(trial.seconds for trial in tried.values()))


def unequal_trials(choices: Mapping[str, Choice]) -> str | None:
    """What is wrong where methods had different numbers of trials, since no board ranks those together; else None."""
    trials = {name: choice.trials for name, choice in sorted(choices.items())}
    if len(set(trials.values())) < 2:
        return None
    listing = ", ".join(f"{name} {count}" for name, count in trials.items())
    return f"methods had different numbers of trials, so that a board sets some of them aside: {listing}"


def as_yaml(choices: Mapping[str, Choice], about: Mapping[str, Any]) -> str:
    """The file of a configuration group `tuned`, the same text for the same choices."""
    import yaml

    body = {
        name: {
            "values": dict(choice.values),
            "trials": choice.trials,
            "split": about["split"],
            "objective": round(choice.objective, 2),
            "seconds": round(choice.seconds, 1),
        }
        for name, choice in sorted(choices.items())
    }
    head = (
        f"# Hyper-parameters for zoo {about['zoo']} and suite {about['suite']}, chosen on its {about['split']} items.\n"
        f"# Made by: {about['command']}\n"
    )
    return head + str(yaml.safe_dump({"choices": body}, sort_keys=False))
