"""The gate before a sweep: do base and experts score what is stated of them, and what any sane expert must reach?

A wrong chat template, a truncated download or a limit on answers shows here, on the models that everything else is
compared with, and not as a strange board.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, variance

from harness.errors import unknown_name
from harness.results import Record, TaskOutcome
from harness.zoo.criteria import Criterion
from harness.zoo.models import Zoo

CERTAIN = 2.0
"""Standard errors that the mean over some of a task's items may lie from the mean over all, about 95 in 100 times."""


@dataclass(frozen=True)
class Limits:
    """How many answers of a task may be bad before the set-up is suspected, in percent."""

    empty: float = 10.0
    """Answers without a word."""
    truncated: float = 30.0
    """Answers that ran into the limit of new tokens."""

    def __post_init__(self) -> None:
        for name in ("empty", "truncated"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0..100 percent")


def check_gate(zoo: Zoo, records: Mapping[str, Record], limits: Limits) -> list[Criterion]:
    """All that can be asked of a zoo's own models on one suite.

    Args:
        zoo: says which expert is for which capability, and what its models are stated to score.
        records: the record of base, of every expert, and of other models that have stated scores, by name.
        limits: how many empty and truncated answers are too many.
    """
    criteria = []
    for name in zoo.experts:
        criteria += _expert(name, zoo.capabilities.get(name, name), records["base"], records[name])
    for name, scores in zoo.stated.items():
        criteria += [_stated(name, measured, score, zoo.tolerance, records[name]) for measured, score in scores.items()]
    for name, record in records.items():
        criteria += _answers(name, record, limits)
    return criteria


def gated_models(zoo: Zoo) -> list[str]:
    """The models that are evaluated: base, experts, and others that have stated scores.

    Raises:
        GraftbenchError: scores are stated of a model that is none of the zoo's.
    """
    known = ["base", *zoo.experts, *zoo.references]
    for name in zoo.stated:
        if name not in known:
            raise unknown_name("model in zoo.stated", name, known)
    return ["base", *zoo.experts, *(name for name in zoo.references if name in zoo.stated)]


def _expert(name: str, capability: str, base: Record, expert: Record) -> list[Criterion]:
    """An expert on what it is for: above chance in every task, and above the base by more than the noise."""
    tasks = [task for task in expert.tasks if task.capability == capability]
    if not tasks:
        known = ", ".join(dict.fromkeys(task.capability for task in expert.tasks))
        text = f"expert {name}: the suite measures {capability} (zoo.capabilities.{name} says what it is for)"
        return [Criterion(text, f"only {known}", False)]
    criteria = [
        Criterion(
            f"expert {name} on {task.task}: above chance ({100 * task.chance:.1f})",
            f"{task.score:.1f}",
            task.score > 100 * task.chance,
        )
        for task in tasks
    ]
    gain, error = gain_over(base, expert, capability)
    text = f"expert {name} on {capability}: above the base by more than the standard error"
    return [*criteria, Criterion(text, f"{gain:+.1f} ± {error:.1f}", gain > error)]


def gain_over(base: Record, expert: Record, capability: str) -> tuple[float, float]:
    """By how much an expert beats the base on a capability, and the standard error of that, in points.

    Both answered the same items, so the differences of single items count: items that are hard for both cancel out. A
    capability is the plain mean of its tasks, as on the board.
    """
    theirs = {task.task: task for task in base.tasks}
    differences = [
        [a - b for a, b in zip(task.outcomes, theirs[task.task].outcomes, strict=True)]
        for task in expert.tasks
        if task.capability == capability
    ]
    gain = fmean(fmean(values) for values in differences)
    of_means = sum(variance(values) / len(values) if len(values) > 1 else math.inf for values in differences)
    return 100 * gain, 100 * math.sqrt(of_means) / len(differences)


def _stated(model: str, measured: str, score: float, tolerance: float, record: Record) -> Criterion:
    """A stated score of a task or capability. Over a part of its items, the noise of that draw is allowed for too."""
    tasks = [task for task in record.tasks if task.task == measured] or [
        task for task in record.tasks if task.capability == measured
    ]
    text = f"{model} on {measured}: stated {score:.1f}, within {tolerance:.1f}"
    if not tasks:
        known = ", ".join(dict.fromkeys([*(t.task for t in record.tasks), *(t.capability for t in record.tasks)]))
        return Criterion(text, f"not measured; the suite has {known}", False)
    found = fmean(task.score for task in tasks)
    allowed = tolerance
    if any(_is_limited(record, task) for task in tasks):
        noise = CERTAIN * math.sqrt(sum(_standard_error(task) ** 2 for task in tasks)) / len(tasks)
        allowed, text = tolerance + noise, f"{text}, and {noise:.1f} more for a part of the items"
    return Criterion(text, f"{found:.1f} ({found - score:+.1f})", abs(found - score) <= allowed)


def _is_limited(record: Record, task: TaskOutcome) -> bool:
    """Whether only the first items of a task were asked."""
    settings = (record.suite.get("tasks") or {}).get(task.task) or {}
    return settings.get("limit") is not None


def _standard_error(task: TaskOutcome) -> float:
    """Of a task's score, in points."""
    count = len(task.outcomes)
    return 100 * math.sqrt(variance(task.outcomes) / count) if count > 1 else math.inf


def _answers(name: str, record: Record, limits: Limits) -> Iterator[Criterion]:
    """For empty and for truncated answers, the task with the largest share; multiple choice has neither."""
    for kind, most in (("empty", limits.empty), ("truncated", limits.truncated)):
        shares = {
            task.task: 100 * task.counts[kind] / len(task.outcomes) for task in record.tasks if kind in task.counts
        }
        if shares:
            worst, share = max(shares.items(), key=lambda item: item[1])
            text = f"{name}: at most {most:g} % of the answers of a task {kind}"
            yield Criterion(text, f"{share:.1f} % ({worst})" if share else "none", share <= most)
