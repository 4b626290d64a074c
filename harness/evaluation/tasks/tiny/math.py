"""Scoring of ``tiny_math``: the answer must be the number, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def process_results(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``exact_match``: 1 if the answer without surrounding blanks is the item's answer, else 0."""
    return {"exact_match": float(answers[0].strip() == item["answer"])}
