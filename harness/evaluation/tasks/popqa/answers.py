"""Prompts and scoring of ``popqa``."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import GraftbenchError


def question(item: Mapping[str, Any]) -> str:
    """What is asked, before any chat template."""
    return f"Q: {item['question']}\nA:"


def target(item: Mapping[str, Any]) -> str:
    """A right answer, for the examples: the first one that the data name."""
    return possible_answers(item)[0]


def process_results(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``contains``: 1 if the answer contains a possible answer as it is written, in lower case or with a capital first
    letter, as Mallen et al. count it. ``exact_match``: 1 if it is one, but for case, punctuation and articles."""
    answer, possible = answers[0], possible_answers(item)
    written = {form for each in possible for form in (each, each.lower(), each.capitalize())}
    return {
        "contains": float(any(form in answer for form in written)),
        "exact_match": float(_bare(answer) in {_bare(each) for each in possible}),
    }


def possible_answers(item: Mapping[str, Any]) -> list[str]:
    """The right answers of an item; the data hold them as a JSON list in a string.

    Raises:
        GraftbenchError: there is none, or the field is no list.
    """
    given = item["possible_answers"]
    try:
        listed = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise GraftbenchError(f"popqa: possible_answers is {given!r}; expected a JSON list of strings") from error
    if not isinstance(listed, (list, tuple)) or not listed:
        raise GraftbenchError(f"popqa: possible_answers is {given!r}; expected a JSON list of strings")
    return [str(each) for each in listed]


def _bare(text: str) -> str:
    """The answer as SQuAD compares it: lower case, without punctuation and articles, words one blank apart."""
    letters = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the"))
