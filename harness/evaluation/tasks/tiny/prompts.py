"""What the tiny tasks show a model of an item; the chat template adds the rest.

Functions rather than templates, since a template would strip blanks and read a number as a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def prompt(item: Mapping[str, Any]) -> str:
    """The user's message."""
    return str(item["prompt"])


def answer(item: Mapping[str, Any]) -> str:
    """A right answer."""
    return str(item["answer"])


def choices(item: Mapping[str, Any]) -> list[str]:
    """The four choices of a multiple-choice item."""
    return list(item["choices"])


def label(item: Mapping[str, Any]) -> int:
    """The index of the right choice."""
    return int(item["label"])
