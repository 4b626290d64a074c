"""From lm-eval's logged samples to outcomes per item."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa

from harness.errors import GraftbenchError
from harness.evaluation.plan import TaskPlan
from harness.files import text_digest
from harness.results.record import TaskOutcome

Number = TypeVar("Number", int, float)

ANSWER_COLUMNS = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.string()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("target", pa.string()),
        ("outcome", pa.float64()),
        ("empty", pa.bool_()),
        ("truncated", pa.bool_()),
    ]
)
"""One row per item and sample (0, unless a task draws several answers): the prompt as the model saw it, its
answer (for multiple choice the likeliest choice, before any normalisation by length), what was expected, the
item's headline metric, and whether the answer was empty or ran into the limit of new tokens."""


def task_outcome(plan: TaskPlan, results: Mapping[str, Any]) -> TaskOutcome:
    """The outcomes of one task out of `simple_evaluate`'s results, checked against the score that lm-eval
    itself reports.

    Raises:
        GraftbenchError: the chosen metric is missing, does not lie in 0..1 for an item, or its mean is not
            what lm-eval reports.
    """
    samples = results["samples"][plan.name]
    metrics = _values_by_metric(samples)
    metric = plan.metric or next(iter(metrics))
    if metric not in metrics:
        raise GraftbenchError(
            f"task '{plan.name}' has not computed the metric '{metric}'; it has: {'; '.join(metrics)}"
        )
    outcomes = metrics.pop(metric)
    outside = [value for value in outcomes if not 0.0 <= value <= 1.0]
    if outside:
        raise GraftbenchError(
            f"task '{plan.name}': the metric '{metric}' is {outside[0]} for an item; outcomes must lie in 0..1"
        )
    reported = results["results"][plan.name][metric]
    mean = math.fsum(outcomes) / len(outcomes)
    if abs(mean - float(reported)) > 1e-9:
        raise GraftbenchError(
            f"task '{plan.name}': the mean of '{metric}' over the items is {mean}, "
            f"but lm-eval reports {reported}; is it a mean over items?"
        )
    counted = _of_filter(samples, metric)
    return TaskOutcome(
        task=plan.name,
        capability=plan.capability,
        metric=metric,
        chance=plan.chance,
        item_ids=tuple(item_ids(plan.name, (sample["doc_hash"] for sample in counted))),
        outcomes=outcomes,
        other_metrics=metrics,
        prompts=prompts_digest(counted),
        clusters=clusters(plan, counted),
    )


def clusters(plan: TaskPlan, samples: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The cluster of each item: the family, and 16 digits of the digest of the field's value; nothing where each item
    stands alone.

    Raises:
        GraftbenchError: an item lacks the field.
    """
    if not plan.cluster:
        return ()
    family, name = plan.cluster["family"], plan.cluster["field"]
    found = []
    for sample in samples:
        if name not in sample["doc"]:
            raise GraftbenchError(
                f"task '{plan.name}': its items have no field '{name}', by which suite.tasks.{plan.entry}.cluster "
                f"puts them together; they have {', '.join(sorted(map(str, sample['doc'])))}"
            )
        found.append(f"{family}:{text_digest(str(sample['doc'][name]))[:16]}")
    return tuple(found)


def prompts_digest(samples: Iterable[Mapping[str, Any]]) -> str:
    """Digest of what was asked, over all items in their order; as lm-eval's `task_hashes`."""
    digests = (sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    return text_digest("".join(digests))


def pooled(plans: Sequence[TaskPlan], outcomes: Sequence[TaskOutcome]) -> tuple[TaskOutcome, ...]:
    """One outcome for each name in the suite: the tasks of a group become one, in which every item counts the same, as
    lm-eval weighs MMLU's subjects (`weight_by_size`). Their ids still tell the tasks apart."""
    by_entry: dict[str, list[TaskOutcome]] = {}
    for plan, outcome in zip(plans, outcomes, strict=True):
        by_entry.setdefault(plan.entry, []).append(outcome)
    return tuple(_joined(entry, members) for entry, members in by_entry.items())


def _joined(entry: str, members: list[TaskOutcome]) -> TaskOutcome:
    if [member.task for member in members] == [entry]:
        return members[0]
    shared = [name for name in members[0].other_metrics if all(name in member.other_metrics for member in members)]
    return replace(
        members[0],
        task=entry,
        item_ids=tuple(chain.from_iterable(member.item_ids for member in members)),
        outcomes=tuple(chain.from_iterable(member.outcomes for member in members)),
        other_metrics={
            name: tuple(chain.from_iterable(member.other_metrics[name] for member in members)) for name in shared
        },
        prompts=text_digest("".join(str(member.prompts) for member in members)),
        clusters=tuple(chain.from_iterable(member.clusters for member in members)),
        counts=_summed(member.counts for member in members),
        timings=_summed(member.timings for member in members),
    )


def _summed(parts: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    """The sum by name."""
    total: dict[str, Number] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def item_ids(task: str, digests: Iterable[str]) -> list[str]:
    """Ids that stay the same as long as the item does: the task and 16 digits of the item's digest, repeated
    items numbered."""
    seen: Counter[str] = Counter()
    ids = []
    for digest in digests:
        seen[digest] += 1
        ids.append(f"{task}:{digest[:16]}" + (f":{seen[digest]}" if seen[digest] > 1 else ""))
    return ids


@dataclass(frozen=True)
class Answers:
    """The answers of one task."""

    table: pa.Table
    """See ANSWER_COLUMNS."""

    def counts(self) -> dict[str, int]:
        """How many answers were empty, and how many ran into the limit of new tokens."""
        return {column: sum(self.table.column(column).to_pylist()) for column in ("empty", "truncated")}


def answers(
    plan: TaskPlan,
    outcome: TaskOutcome,
    results: Mapping[str, Any],
    token_count: Callable[[str], int],
    default_limit: int,
) -> Answers:
    """The table of the answers to the items of `outcome`; `default_limit` is what a task gets that limits no
    new tokens itself."""
    rows = []
    for item, value, sample in zip(
        outcome.item_ids,
        outcome.outcomes,
        _of_filter(results["samples"][plan.name], outcome.metric),
        strict=True,
    ):
        generated = plan.declaration.output_type == "generate_until"
        limit = default_limit if plan.max_gen_toks is None else plan.max_gen_toks
        for number, answer in enumerate(map(str, sample["resps"][0]) if generated else [_likeliest(sample)]):
            row = {
                "task": plan.name,
                "item": item,
                "sample": number,
                "prompt": str(sample["arguments"][0][0]),
                "answer": answer,
                "target": str(sample["target"]),
                "outcome": value,
                "empty": generated and not answer.strip(),
                "truncated": generated and token_count(answer) >= limit,
            }
            rows.append(row)
    return Answers(pa.Table.from_pylist(rows, schema=ANSWER_COLUMNS))


def _values_by_metric(samples: list[dict[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Every metric's values in the order of the items, by `metric,filter`; metrics that are no number per
    item are left out."""
    collected: dict[str, list[float | None]] = {}
    for sample in samples:
        for name in sample["metrics"]:
            collected.setdefault(f"{name},{sample['filter']}", []).append(_number(sample[name]))
    items = Counter(sample["filter"] for sample in samples)
    complete = {}
    for name, values in collected.items():
        numbers = tuple(value for value in values if value is not None)
        if len(numbers) == items[name.rpartition(",")[2]]:
            complete[name] = numbers
    return complete


def _number(value: Any) -> float | None:
    """A metric's value for one item; a list of verdicts (ifeval's single instructions) counts as their
    mean."""
    if isinstance(value, (list, tuple)):
        parts = [_number(each) for each in value]
        numbers = [part for part in parts if part is not None]
        return (
            sum(numbers) / len(numbers) if numbers and len(numbers) == len(parts) and isinstance(value, list) else None
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _of_filter(samples: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """lm-eval logs an item once per filter; these are the entries of the metric's own filter."""
    name = metric.rpartition(",")[2]
    return [sample for sample in samples if sample["filter"] == name]


def _first(responses: Any) -> Any:
    while isinstance(responses, (list, tuple)):
        responses = responses[0]
    return responses


def _likeliest(sample: dict[str, Any]) -> str:
    likelihoods = [float(_first(response)) for response in sample["resps"]]
    best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return str(sample["arguments"][best][1]).strip()
