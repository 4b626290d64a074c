"""Whether training data hold the items of a suite: n-grams of words that both have.

As GPT-3's authors looked for contamination (Brown et al. 2020, arXiv:2005.14165, appendix C): lower case, no
punctuation, 13 words in a row. It finds what was copied, not what was told in other words.
"""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError, all_of
from harness.evaluation.code_eval import code_eval_in_sandbox
from harness.evaluation.loading import loaded_task
from harness.evaluation.plan import plan_suite
from harness.evaluation.sandbox import code_execution_allowed
from harness.evaluation.suite import Suite

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """An item of a suite that has words in a row with the training data."""

    item: int
    """Its place among the task's evaluated items, from 0."""
    line: int
    """The first line of the training data that has them, from 1."""
    words: str


@dataclass(frozen=True)
class TaskOverlaps:
    """What was found of one task."""

    task: str
    items: int
    comparable: int
    """Items with a text of at least n words; the others cannot be looked for."""
    overlaps: tuple[Overlap, ...]
    """One for each item that was found, in the task's order."""


def overlaps(suite: Suite, data: Path, n: int = 13) -> list[TaskOverlaps]:
    """Look for a suite's items in training data, task by task.

    Every text of an item counts, the answer too, each on its own; prompts' templates do not.

    Args:
        suite: whose evaluated items are looked for; they are read as an evaluation reads them.
        data: JSON lines; every text in a line counts, whatever it is called.
        n: words in a row that make an overlap.

    Raises:
        GraftbenchError: a task or the data cannot be read.
    """
    lines = list(_lines(data))  # before tasks are loaded, which takes longer
    texts = item_texts(suite)
    where: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    comparable: dict[str, set[int]] = {task: set() for task in texts}
    for task, items in texts.items():
        for item, own in enumerate(items):
            for gram in {gram for text in own for gram in _grams(text, n)}:
                where[gram].append((task, item))
                comparable[task].add(item)
    found: dict[str, dict[int, Overlap]] = {task: {} for task in texts}
    for number, line in lines:
        for gram in (gram for text in _texts(line) for gram in _grams(text, n)):
            for task, item in where.get(gram, ()):
                found[task].setdefault(item, Overlap(item, number, " ".join(gram)))
    return [
        TaskOverlaps(task, len(items), len(comparable[task]), tuple(found[task][item] for item in sorted(found[task])))
        for task, items in texts.items()
    ]


def item_texts(suite: Suite) -> dict[str, list[list[str]]]:
    """By task, the texts of each evaluated item as the data have them.

    Raises:
        GraftbenchError: a task, or its data, cannot be read.
    """
    plans, problems = plan_suite(suite)
    if problems:
        raise all_of(problems)
    texts = {}
    with (
        tempfile.TemporaryDirectory(prefix="graftbench-tasks-") as folder,
        code_execution_allowed(True),  # no model writes any here: HumanEval's scorer tries itself when it is loaded
        code_eval_in_sandbox(),
    ):
        for plan in plans:
            documents = list(loaded_task(plan, Path(folder)).eval_docs)[: plan.limit]
            texts[plan.name] = [list(_texts(document)) for document in documents]
    return texts


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        raise GraftbenchError(f"{path}: line {number} is no JSON ({error})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise GraftbenchError(f"{path} cannot be read ({error}); name a file of JSON lines") from error


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _grams(text: str, n: int) -> Iterable[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))
