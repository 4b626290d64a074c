"""Scoring of ``tiny_code``: the completed function must pass the item's unit tests, run in the sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.evaluation.sandbox import run_program


def process_results(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``pass@1``: 1 if the program made of signature, answer and unit tests runs to its end, else 0.

    Raises GraftbenchError where running model-written code is not allowed.
    """
    return {"pass@1": float(run_program(program(item, answers[0])).passed)}


def program(item: Mapping[str, Any], answer: str) -> str:
    """The source that is run: the signature, the answer indented as its body, then the unit tests."""
    body = "\n".join(f"    {line}" for line in answer.strip().splitlines()) or "    pass"
    return "\n".join((item["signature"], body, *item["tests"], ""))
