"""MATH: an answer is right if it is mathematically equal to the solution's last box."""

from __future__ import annotations

import threading

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.tasks.math.equality import boxed, minerva_examples, problem, process_results


@pytest.mark.parametrize(
    ("solution", "answer", "right"),
    [
        (r"So $\boxed{\frac{1}{2}}$.", "The final answer is $0.5$. I hope it is correct.", True),
        (r"So $\boxed{\frac{1}{2}}$.", r"\boxed{\frac{2}{4}}", True),
        (r"So $\boxed{\frac{1}{2}}$.", "The final answer is $2$. I hope it is correct.", False),
        (r"So $\boxed{\frac{1}{2}}$.", "", False),
        (r"\boxed{x^2+2x+1}", "It is $(x+1)^2$.", True),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"The final answer is $(3,\pi/2)$", True),
        (r"\boxed{[2,5)}", "$[2,5)$", True),
        (r"\boxed{[2,5)}", "$[2,5]$", False),
        (r"First \boxed{1}, then $\boxed{7}$.", "7", True),
        (r"$\boxed 5$", "5", True),
    ],
)
def test_equal_answers_count_however_they_are_written(solution: str, answer: str, right: bool) -> None:
    assert process_results({"solution": solution}, [answer]) == {"math_verify": float(right)}


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{\frac{1}{2}} and more", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"$\boxed 12$", "12"),
        (r"\boxed{1", None),
        ("no box", None),
    ],
)
def test_the_last_box_is_read_with_its_braces(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


def test_a_solution_without_a_box_is_refused() -> None:
    with pytest.raises(GraftbenchError, match=r"has no \\boxed answer"):
        process_results({"solution": "It is 4."}, ["4"])


def test_scoring_in_another_thread_is_refused() -> None:
    """math-verify stops what takes too long by a signal, which only the main thread gets."""
    caught: list[BaseException] = []

    def score() -> None:
        try:
            process_results({"solution": r"\boxed{4}"}, ["4"])
        except GraftbenchError as error:
            caught.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_minervas_four_examples_end_as_their_answers_are_read() -> None:
    examples = minerva_examples()
    assert len(examples) == 4
    for example in examples:
        assert process_results(example, [example["solution"]]) == {"math_verify": 1.0}
    assert problem(examples[1]).startswith("Problem:\nIf $\\det")
    assert problem(examples[1]).endswith("\n\nSolution:")
