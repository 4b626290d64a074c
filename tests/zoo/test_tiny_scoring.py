"""Scoring of the tiny tasks, on answers written by hand."""

from __future__ import annotations

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.sandbox import code_execution_allowed
from harness.evaluation.tasks.tiny import code, instructions, math
from harness.zoo.tiny.items import Counts, generate_items

UPPER = {"kind": "upper"}
BRACKETS = {"kind": "wrap", "left": "[", "right": "]"}
BANG = {"kind": "end", "mark": "!"}
START = {"kind": "start", "mark": "ok "}
TITLE = {"kind": "title"}
SPELLED = {"kind": "spelled", "mark": "-"}


def repeat(times: int) -> dict[str, object]:
    return {"kind": "repeat", "times": times}


@pytest.mark.parametrize(("answer", "score"), [("61", 1.0), (" 61\n", 1.0), ("16", 0.0), ("61.", 0.0), ("", 0.0)])
def test_arithmetic_needs_the_number_and_nothing_else(answer: str, score: float) -> None:
    assert math.process_results({"answer": "61"}, [answer]) == {"exact_match": score}


@pytest.mark.parametrize(
    ("text", "checks", "answer", "strict", "loose"),
    [
        ("red fox", [UPPER], "RED FOX", 1, 1),
        ("red fox", [UPPER], "RED Fox", 0, 0),
        ("red fox", [UPPER], "RED", 0, 0),
        ("fox", [UPPER, BRACKETS], "[FOX]", 1, 1),
        ("fox", [UPPER, BRACKETS], "[FOX", 0, 0),
        ("fox", [UPPER, BRACKETS], "[[FOX]]", 0, 0),
        ("fox", [BRACKETS], "[fox].", 0, 1),
        ("fox", [BRACKETS], " [fox]", 0, 1),
        ("fox", [BRACKETS], "sure:\n[fox]", 0, 1),
        ("fox", [repeat(2)], "fox fox", 1, 1),
        ("fox", [repeat(2)], "fox fox fox", 0, 0),
        ("red fox", [repeat(3)], "red fox red fox red fox", 1, 1),
        ("fox", [repeat(2)], "foxfox", 0, 0),
        ("fox", [BANG], "fox!", 1, 1),
        ("fox", [BANG], "fox!!", 0, 0),
        ("fox", [repeat(2), BANG], "fox fox!", 1, 1),
        ("fox", [START], "ok fox", 1, 1),
        ("fox", [START], "fox", 0, 0),
        ("fox", [START], "okfox", 0, 0),
        ("red fox", [TITLE], "Red Fox", 1, 1),
        ("red fox", [TITLE], "Red fox", 0, 0),
        ("fox", [SPELLED], "f-o-x", 1, 1),
        ("fox", [SPELLED], "f-ox", 0, 0),
        ("fox", [SPELLED], "fox", 0, 0),
    ],
)
def test_instructions_are_verified_strictly_and_loosely(
    text: str, checks: list[dict[str, object]], answer: str, strict: int, loose: int
) -> None:
    scores = instructions.process_results({"text": text, "checks": checks}, [answer])
    assert scores == {"strict": strict, "loose": loose}


def test_every_reference_answer_of_the_instructions_follows_them() -> None:
    for item in generate_items("instructions", 0, Counts(300, 60, 60))["train"]:
        assert instructions.process_results(item, [item["answer"]]) == {"strict": 1.0, "loose": 1.0}, item


def test_a_checks_extra_columns_of_none_do_no_harm() -> None:
    # datasets gives every check of a column the same keys, None where an item has none.
    check = {"kind": "upper", "left": None, "right": None, "mark": None, "times": None}
    assert instructions.process_results({"text": "fox", "checks": [check]}, ["FOX"])["strict"] == 1.0


DOUBLE = {"signature": "def f(a,b):", "tests": ["assert f(2,9)==4", "assert f(-1,9)==-2"]}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("return 2*a", 1.0),
        ("return a+2", 0.0),
        ("return 2*", 0.0),
        ("", 0.0),
        ("return b", 0.0),
        ("while 1:pass", 0.0),
    ],
)
def test_code_must_pass_its_unit_tests_in_the_sandbox(answer: str, score: float) -> None:
    ((candidate,),) = code.candidates([[answer]], [DOUBLE])
    with code_execution_allowed(True):
        assert code.pass_at_k([code.tests(DOUBLE)], [[candidate]], k=[1]) == {"pass@1": score}


def test_code_is_not_run_where_running_it_is_not_allowed() -> None:
    with pytest.raises(GraftbenchError):
        code.pass_at_k([code.tests(DOUBLE)], [["def f(a,b): return 2*a"]], k=[1])


def test_of_several_answers_each_is_completed_and_tested() -> None:
    """Two of three right: pass@2 is 1 − C(1,2)/C(3,2) = 1, pass@1 2/3."""
    given = code.candidates([["return 2*a\n", "return b", "x = a\nreturn a + x"]], [DOUBLE])
    assert given[0][2] == "def f(a,b):\n    x = a\n    return a + x"
    with code_execution_allowed(True):
        scores = code.pass_at_k([code.tests(DOUBLE)], given, k=[1, 2])
    assert scores == {"pass@1": pytest.approx(2 / 3), "pass@2": 1.0}


def test_the_program_is_signature_body_and_unit_tests() -> None:
    assert code.function(DOUBLE, "return 2*a\n") == "def f(a,b):\n    return 2*a"
    assert code.function(DOUBLE, "") == "def f(a,b):\n    pass"
    assert code.tests(DOUBLE) == "assert f(2,9)==4\nassert f(-1,9)==-2\n"
