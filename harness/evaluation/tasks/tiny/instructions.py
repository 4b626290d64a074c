"""Scoring of ``tiny_instructions``: whether an answer follows its formatting instructions.

As in IFEval (Zhou et al., 2023, arXiv:2311.07911), the strict score judges the answer as it stands; the loose
one is content if any of some harmless rewritings of the answer follows the instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def process_results(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``strict`` and ``loose``: 1 if every instruction is followed and the given words are there, else 0."""
    answer = answers[0]
    return {
        "strict": float(follows(item, answer)),
        "loose": float(any(follows(item, variant) for variant in loose_variants(answer))),
    }


def follows(item: Mapping[str, Any], answer: str) -> bool:
    """Whether the answer passes all of the item's checks and says the item's words, and says nothing else."""
    checks = item["checks"]
    return says(answer, item["text"], checks) and all(CHECKS[check["kind"]](answer, check, item) for check in checks)


def says(answer: str, text: str, checks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the letters are those of the words, as often and after the opening that the checks ask."""
    times, opening = 1, ""
    for check in checks:
        if check["kind"] == "repeat":
            times = check["times"]
        elif check["kind"] == "start":
            opening = check["mark"]
    return _letters(answer) == _letters(opening) + _letters(text) * times


def loose_variants(answer: str) -> list[str]:
    """The answer without surrounding blanks, its first or last line, a final full stop, and some of these."""
    lines = answer.strip().split("\n")
    variants = [answer, "\n".join(lines), "\n".join(lines[1:]), "\n".join(lines[:-1])]
    variants += [" ".join(variant.split()) for variant in variants]
    variants += [variant.removesuffix(".") for variant in variants]
    return variants


def _upper(answer: str, check: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    return answer == answer.upper()


def _title(answer: str, check: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    words = answer.split()
    return len(words) == len(item["text"].split()) and answer == answer.title()


def _wrap(answer: str, check: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    left, right = check["left"], check["right"]
    inner = answer[len(left) : len(answer) - len(right)]
    return (
        len(answer) >= len(left) + len(right)
        and answer.startswith(left)
        and answer.endswith(right)
        and left not in inner
        and right not in inner
    )


def _repeat(answer: str, check: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    words = "".join(character for character in answer.lower() if character.isalpha() or character == " ").split()
    return words == item["text"].lower().split() * check["times"]


def _end(answer: str, check: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    return answer.endswith(check["mark"]) and answer.count(check["mark"]) == 1


def _start(answer: str, check: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    return answer.startswith(check["mark"])


def _spelled(answer: str, check: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    return check["mark"].join(_letters(item["text"])) in answer.lower()


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalpha())


CHECKS: dict[str, Callable[[str, Mapping[str, Any], Mapping[str, Any]], bool]] = {
    "upper": _upper,
    "title": _title,
    "wrap": _wrap,
    "repeat": _repeat,
    "end": _end,
    "start": _start,
    "spelled": _spelled,
}
"""How each kind of check is decided: (answer, check, item) -> followed."""
