"""Prompts and scoring of the MATH tasks: an answer is right if it is mathematically equal to the solution's.

Equality is decided by math-verify, which works with the antlr4 that Hydra needs.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from math_verify import parse, verify

from harness.errors import GraftbenchError
from harness.evaluation.declaration import stock_tasks

EXAMPLES = ("minerva_math/utils.py", "list_fewshot_samples")
"""Where lm-eval keeps Minerva's examples: a file that cannot be imported here (it insists on another antlr4), and the
function that returns them as a literal."""


def problem(item: Mapping[str, Any]) -> str:
    """What is asked, as Minerva does."""
    return f"Problem:\n{item['problem']}\n\nSolution:"


def solution(item: Mapping[str, Any]) -> str:
    """The worked solution, with the answer in a box."""
    return str(item["solution"])


def minerva_examples() -> list[dict[str, Any]]:
    """Minerva's four examples (Lewkowycz et al., 2022, arXiv:2206.14858, appendix D), from lm-eval's file.

    Raises:
        GraftbenchError: this version of lm-eval keeps them elsewhere.
    """
    name, function = EXAMPLES
    file = stock_tasks() / name
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ():
        if isinstance(node, ast.FunctionDef) and node.name == function:
            returned = next((each.value for each in node.body if isinstance(each, ast.Return)), None)
            if returned is not None:
                return [dict(example) for example in ast.literal_eval(returned)]
    raise GraftbenchError(f"{file} has no {function}; Minerva's examples are those of lm-eval 0.4.13")


def process_results(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """``math_verify``: 1 if the answer equals the one in the solution's last box, else 0.

    Raises:
        GraftbenchError: the solution has no box, or scoring does not run in the process's main thread, where
            math-verify can stop an expression that takes it too long.
    """
    if threading.current_thread() is not threading.main_thread():
        raise GraftbenchError("MATH is scored with math-verify, which works in the main thread only")
    expected = boxed(str(item["solution"]))
    if expected is None:
        raise GraftbenchError(f"a problem of MATH has no \\boxed answer in its solution: {item['solution'][:80]!r}")
    gold = parse(f"$\\boxed{{{expected}}}$")
    return {"math_verify": float(bool(gold) and verify(gold, parse(answers[0])))}


def boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` or ``\fbox{…}`` (or follows ``\boxed``), without the box; else None."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not rest.startswith("{"):
        words = rest.split("$")[0].split()
        return words[0] if words else None
    depth = 0
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place].strip()
    return None
