"""Hand-made items with the fields of public benchmarks, for the data that tests cannot have; with right answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evaluation.plan import TaskPlan


@dataclass(frozen=True)
class Item:
    """An item, a piece of its prompt that no other item has, and a right answer."""

    fields: dict[str, Any]
    piece: str
    answer: str


def write_benchmarks(root: Path, plans: Iterable[TaskPlan], count: int = 3) -> dict[str, str]:
    """Write a mirror with items for every task; examples get as many as the task shows. Returns right answers by the
    pieces of the prompts."""
    answers = {}
    for plan in plans:
        declared = plan.declaration.fields
        data_set, configuration = str(declared["dataset_path"]), str(declared.get("dataset_name") or "default")
        for split in plan.needed_splits():
            examples = plan.num_fewshot + 1 if split == plan.fewshot_split else 0
            where = f"{data_set.rpartition('/')[2]} {configuration} {split}"
            items = [MAKERS[data_set](number, where) for number in range(10, 10 + max(count, examples))]
            answers |= {item.piece: item.answer for item in items}
            path = root / data_set / configuration / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(item.fields) + "\n" for item in items), encoding="utf-8")
    return answers


def _gsm8k(number: int, where: str) -> Item:
    question = f"Ann has {number} pears and buys {number} more ({where}). How many has she?"
    fields = {"question": question, "answer": f"She has {number} + {number}.\n#### {2 * number}"}
    return Item(fields, question, f" She has {number} + {number} = {2 * number}. The answer is {2 * number}.")


def _math(number: int, where: str) -> Item:
    problem = f"What is $\\frac{{{number}}}{{4}}$ ({where})?"
    fields = {"problem": problem, "solution": f"It is $\\boxed{{\\frac{{{number}}}{{4}}}}$.", "level": "Level 1"}
    return Item(fields, problem, f"We divide.\nFinal Answer: The final answer is ${number / 4}$. I hope it is correct.")


def _humaneval(number: int, where: str) -> Item:
    name = f"add_{number}_" + "".join(letter if letter.isalnum() else "_" for letter in where)
    prompt = f'def {name}(a):\n    """Add {number}."""\n'
    test = f"def check(candidate):\n    assert candidate(1) == {number + 1}\n"
    fields = {"task_id": f"T/{number}", "prompt": prompt, "entry_point": name, "test": test, "canonical_solution": ""}
    return Item(fields, prompt, f"    return a + {number}\n")


def _mbpp(number: int, where: str) -> Item:
    text = f"Write a function add that adds {number} ({where})."
    tests = [f"assert add({each}) == {each + number}" for each in (0, 1, 2)]
    code = f"def add(a):\n    return a + {number}"
    fields = {"task_id": number, "text": text, "prompt": text, "code": code, "test_list": tests}
    return Item(fields | {"test_setup_code": "", "challenge_test_list": []}, text, code)


def _ifeval(number: int, where: str) -> Item:
    prompt = f"Write {number} words without commas ({where})."
    fields = {"key": number, "prompt": prompt, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    return Item(fields, prompt, "word " * number)


def _triviaqa(number: int, where: str) -> Item:
    question = f"Which town is number {number} ({where})"
    answer = {"aliases": [f"Town {number}", f"The town of {number}"], "value": f"Town {number}"}
    return Item({"question": question, "question_id": str(number), "answer": answer}, question, f" town {number}")


def _popqa(number: int, where: str) -> Item:
    question = f"Who is the father of person {number} ({where})?"
    possible = [f"Old Person {number}", f"Person {number} senior"]
    fields = {"id": number, "prop": "father", "obj": possible[0], "question": question}
    return Item(fields | {"possible_answers": json.dumps(possible)}, question, f" It was old person {number}.")


def _mmlu(number: int, where: str) -> Item:
    question = f"Which is {number} ({where})?"
    choices = [str(number + offset) for offset in (1, 0, 2, 3)]
    return Item({"question": question, "subject": "x", "choices": choices, "answer": 1}, question, "B")


def _arc(number: int, where: str) -> Item:
    question = f"Which stone weighs {number} kilograms ({where})?"
    choices = {"text": [f"stone {number} {kind}" for kind in "wxyz"], "label": list("ABCD")}
    return Item(
        {"id": str(number), "question": question, "choices": choices, "answerKey": "C"}, question, f"stone {number} y"
    )


def _truthfulqa(number: int, where: str) -> Item:
    question = f"Is {number} a number ({where})?"
    targets = {"choices": [f"Yes, {number} is.", f"No, {number} is a colour."], "labels": [1, 0]}
    return Item({"question": question, "mc1_targets": targets, "mc2_targets": targets}, question, f"Yes, {number} is.")


def _bbh(number: int, where: str) -> Item:
    return Item(
        {"input": f"{number} > 0 ({where}) is", "target": "True"}, f"{number} > 0 ({where})", "So the answer is True."
    )


def _drop(number: int, where: str) -> Item:
    passage, question = f"They scored {number} points ({where}).", "How many points?"
    nothing = {"day": "", "month": "", "year": ""}
    answer = {"number": str(number), "date": nothing, "spans": []}
    validated = {"number": [str(number)], "date": [nothing], "spans": [[]]}
    fields = {"query_id": str(number), "passage": passage, "question": question, "answer": answer}
    return Item(fields | {"validated_answers": validated}, passage, f" {number}")


MAKERS: dict[str, Callable[[int, str], Item]] = {
    "openai/gsm8k": _gsm8k,
    "HuggingFaceH4/MATH-500": _math,
    "EleutherAI/hendrycks_math": _math,
    "openai/openai_humaneval": _humaneval,
    "evalplus/humanevalplus": _humaneval,
    "google-research-datasets/mbpp": _mbpp,
    "evalplus/mbppplus": _mbpp,
    "google/IFEval": _ifeval,
    "mandarjoshi/trivia_qa": _triviaqa,
    "akariasai/PopQA": _popqa,
    "cais/mmlu": _mmlu,
    "allenai/ai2_arc": _arc,
    "truthfulqa/truthful_qa": _truthfulqa,
    "SaylorTwift/bbh": _bbh,
    "EleutherAI/drop": _drop,
}
"""By data set: a number and words that make it unique in, an item out."""
