"""Scoring of ``tiny_code``: the completed function must pass the item's unit tests, run in the sandbox.

Declared as lm-eval's own code tasks are (a filter makes candidates, the target is the tests, the metric takes k), so
that several answers to an item give pass@k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.evaluation.code_eval import CodeEval


def candidates(answers: Sequence[Sequence[str]], items: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The functions to test: for each item all of its answers, completed."""
    return [[function(item, answer) for answer in given] for given, item in zip(answers, items, strict=True)]


def function(item: Mapping[str, Any], answer: str) -> str:
    """The signature, then the answer indented as its body."""
    body = "\n".join(f"    {line}" for line in answer.strip().splitlines()) or "    pass"
    return f"{item['signature']}\n{body}"


def tests(item: Mapping[str, Any]) -> str:
    """The item's unit tests, which are run behind the function."""
    return "\n".join((*item["tests"], ""))


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]) -> dict[str, float]:
    """``pass@k``: how likely one of k answers passes its tests, in 0..1.

    Raises GraftbenchError where running model-written code is not allowed.
    """
    scores, _ = CodeEval().compute(references=references, predictions=predictions, k=k)
    return scores
