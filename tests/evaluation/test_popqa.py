"""PopQA: an answer counts if it contains a possible one."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.tasks.popqa.answers import process_results, question, target

ITEM = {"question": "What is Ada's occupation?", "possible_answers": '["mathematician", "The Writer"]'}


@pytest.mark.parametrize(
    ("answer", "contains", "exact"),
    [
        (" She was a mathematician of note", 1.0, 0.0),
        (" Mathematician.", 1.0, 1.0),
        (" the writer", 1.0, 1.0),
        (" writer", 0.0, 1.0),
        (" MATHEMATICIAN", 0.0, 1.0),
        (" painter", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_answers(answer: str, contains: float, exact: float) -> None:
    """As written, in lower case, or with a capital first letter; the exact match leaves out articles and case."""
    assert process_results(ITEM, [answer]) == {"contains": contains, "exact_match": exact}


def test_prompt_and_example() -> None:
    assert question(ITEM) + " " + target(ITEM) == "Q: What is Ada's occupation?\nA: mathematician"


@pytest.mark.parametrize("given", ["mathematician", "[]", '"x"', [], None])
def test_answers_that_are_no_list_are_refused(given: Any) -> None:
    with pytest.raises(GraftbenchError, match="expected a JSON list"):
        target({"possible_answers": given})
