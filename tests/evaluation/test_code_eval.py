"""pass@k, and lm-eval's stock code tasks scored through our sandbox: right programs pass, wrong and dishonest ones do
not. The problems are written here in the data sets' own fields; with GRAFTBENCH_DATA naming a mirror, the real ones of
HumanEval are run too."""

from __future__ import annotations

import ast
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import evaluate as hugging_face
import pytest

from harness.errors import GraftbenchError
from harness.evaluation.code_eval import CodeEval, code_eval_in_sandbox, pass_at_k
from harness.evaluation.evaluate import evaluate
from harness.evaluation.sandbox import code_execution_allowed
from harness.evaluation.suite import suite_from_config
from harness.results import TaskOutcome
from tests.evaluation.conftest import ScriptedEngine, ScriptedModel, write_items

HUMANEVAL = [
    {
        "task_id": "Test/0",
        "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "\n\ndef check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-1) == -2\n",
    },
    {
        "task_id": "Test/1",
        "prompt": 'from typing import List\n\n\ndef largest(xs: List[int]) -> int:\n    """The largest."""\n',
        "entry_point": "largest",
        "canonical_solution": "    best = xs[0]\n    for x in xs:\n        best = max(best, x)\n    return best\n",
        "test": "\n\ndef check(candidate):\n    assert candidate([1, 3, 2]) == 3\n    assert candidate([-4]) == -4\n",
    },
    {
        "task_id": "Test/2",
        "prompt": 'import math\n\n\ndef is_square(n: int) -> bool:\n    """Whether n is a square."""\n',
        "entry_point": "is_square",
        "canonical_solution": "    root = math.isqrt(n)\n    return root * root == n\n",
        "test": "\n\ndef check(candidate):\n    assert candidate(9)\n    assert not candidate(10)\n",
    },
]

MBPP = [
    {
        "task_id": 11,
        "text": "Write a function to add two numbers.",
        "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
    },
    {
        "task_id": 12,
        "text": "Write a function to reverse a text.",
        "code": "def turn(s):\n    return s[::-1]",
        "test_list": ["assert turn('ab') == 'ba'", "assert turn('') == ''", "assert turn('x') == 'x'"],
    },
]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a network nor the permission that Hugging Face's own metric asks for."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)


@pytest.fixture
def allowed() -> Iterator[None]:
    with code_execution_allowed():
        yield


@pytest.fixture
def code_mirror(tmp_path: Path) -> Path:
    root = tmp_path / "mirror"
    write_items(root / "openai/openai_humaneval/openai_humaneval/test.jsonl", HUMANEVAL)
    arrays = "import numpy as np\n\n\ndef check(candidate):\n    assert np.allclose(candidate(0.5), 1.0)\n"
    write_items(root / "evalplus/humanevalplus/default/test.jsonl", [{**HUMANEVAL[0], "test": arrays}])
    write_items(root / "google-research-datasets/mbpp/full/test.jsonl", MBPP)
    plus = [{"prompt": item["text"], **{key: item[key] for key in ("task_id", "code", "test_list")}} for item in MBPP]
    write_items(root / "evalplus/mbppplus/default/test.jsonl", plus)
    return root


def scored(task: str, root: Path, script: Mapping[str, str], **settings: Any) -> TaskOutcome:
    """The outcome of a stock task, answered by the script."""
    suite = suite_from_config({"tasks": {task: settings}, "data_root": root, "allow_code_execution": True})
    (outcome,) = evaluate("anything", suite, ScriptedEngine(script)).tasks
    return outcome


@pytest.mark.parametrize(("samples", "passed"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (6, 3)])
def test_pass_at_k_counts_the_draws_with_a_right_one(samples: int, passed: int) -> None:
    """An oracle that enumerates all draws of k samples; by hand: of 5 samples 2 right, 1 − 3/10 for k = 2."""
    right = [number < passed for number in range(samples)]
    for k in range(1, samples + 1):
        draws = list(combinations(right, k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)
    assert pass_at_k(5, 2, 2) == 0.7


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_needs_as_many_samples(k: int) -> None:
    with pytest.raises(GraftbenchError, match="there are 5"):
        pass_at_k(5, 2, k)


def test_the_metric_speaks_as_hugging_faces(allowed: None) -> None:
    with code_eval_in_sandbox():
        metric = hugging_face.load("code_eval")
    scores, results = metric.compute(
        references=["assert add(2, 3) == 5", "assert half(4) == 2"],
        predictions=[
            ["def add(a, b): return a * b", "def add(a, b): return a + b"],
            ["def half(x): return x // 2", "def half(x): return x / 2"],
        ],
        k=[1, 2, 10],
    )
    assert scores == {"pass@1": 0.75, "pass@2": 1.0}  # and no pass@10 of two samples
    assert [[verdict["passed"] for _, verdict in results[problem]] for problem in (0, 1)] == [
        [False, True],
        [True, True],
    ]
    assert results[0][0] == (
        0,
        {"task_id": 0, "completion_id": 0, "passed": False, "result": "failed: AssertionError"},
    )
    with pytest.raises(GraftbenchError, match="1 lists of candidates for 2 problems"):
        metric.compute(references=["", ""], predictions=[["pass"]])


def test_other_metrics_are_loaded_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "load", lambda path, **options: (path, options))
    loading = hugging_face.load
    with code_eval_in_sandbox():
        assert isinstance(hugging_face.load("code_eval"), CodeEval)
        assert hugging_face.load("bleu", revision="1") == ("bleu", {"revision": "1"})
    assert hugging_face.load is loading


def test_nothing_runs_without_permission() -> None:
    with pytest.raises(GraftbenchError, match=r"suite\.allow_code_execution=true"):
        CodeEval().compute(references=["pass"], predictions=[["pass"]])


def negated(problem: Mapping[str, Any]) -> str:
    """The canonical solution with `not` before everything that the function itself returns: never equal to what was
    right, for `not x` is a truth value other than x."""
    tree = ast.parse(problem["prompt"] + problem["canonical_solution"])
    function = next(
        each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == problem["entry_point"]
    )

    class Negate(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
            return node  # a function within has returns of its own

        def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
            return node

        def visit_Return(self, node: ast.Return) -> ast.Return:
            return ast.Return(ast.UnaryOp(ast.Not(), node.value or ast.Constant(None)))

    body = [Negate().visit(statement) for statement in function.body]
    lines = [line for each in body for line in ast.unparse(ast.fix_missing_locations(each)).split("\n")]
    return "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("answer", "outcomes"),
    [
        (lambda problem: problem["canonical_solution"], (1.0, 1.0, 1.0)),
        (negated, (0.0, 0.0, 0.0)),
        (lambda problem: "    pass\n", (0.0, 0.0, 0.0)),
        (lambda problem: "    return (\n", (0.0, 0.0, 0.0)),
        (lambda problem: "    import sys\n    sys.exit(0)\n", (0.0, 0.0, 0.0)),
        (lambda problem: "    import os\n    os._exit(0)\n", (0.0, 0.0, 0.0)),
        (lambda problem: "    raise SystemExit\n", (0.0, 0.0, 0.0)),
        (lambda problem: "    return 0\n\nimport os\nos._exit(0)\n", (0.0, 0.0, 0.0)),
    ],
    ids=["canonical", "negated", "empty", "broken", "exits", "exits hard", "raises", "exits at import"],
)
def test_humaneval_through_lm_evals_own_task(
    code_mirror: Path, answer: Callable[[Mapping[str, Any]], str], outcomes: tuple[float, ...]
) -> None:
    script = {problem["prompt"]: answer(problem) for problem in HUMANEVAL}
    outcome = scored("humaneval", code_mirror, script)
    assert (outcome.metric, outcome.outcomes) == ("pass@1,create_test", outcomes)


def test_the_tests_of_humaneval_plus_may_use_numpy(code_mirror: Path) -> None:
    (problem, *_) = HUMANEVAL
    assert scored("humaneval_plus", code_mirror, {problem["prompt"]: "    return 2 * x\n"}).outcomes == (1.0,)
    assert scored("humaneval_plus", code_mirror, {problem["prompt"]: "    return x\n"}).outcomes == (0.0,)


@pytest.mark.parametrize("task", ["mbpp", "mbpp_plus"])
def test_mbpp_through_lm_evals_own_task(code_mirror: Path, task: str) -> None:
    right = {item["text"]: item["code"] for item in MBPP}
    wrong = {item["text"]: item["code"].replace("return", "return not") for item in MBPP}
    assert scored(task, code_mirror, right).outcomes == (1.0, 1.0)
    assert scored(task, code_mirror, wrong).outcomes == (0.0, 0.0)


class SeveralAnswers(ScriptedModel):
    """Answers an item with one text of its list after the other."""

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        asked: Counter[str] = Counter()
        answers = []
        for request in requests:
            prompt = request.args[0]
            texts = self._answer(prompt)
            answers.append(texts[asked[prompt] % len(texts)])
            asked[prompt] += 1
        return answers


SAMPLED = {"do_sample": True, "temperature": 0.8}


def test_pass_at_k_of_several_answers(code_mirror: Path) -> None:
    """Four answers to each problem, of which 2, 4 and 0 are right: pass@2 is 1 − C(2,2)/C(4,2) = 5/6, 1 and 0."""
    right = [problem["canonical_solution"] for problem in HUMANEVAL]
    script = {
        HUMANEVAL[0]["prompt"]: [right[0], "    return x\n", "", right[0]],
        HUMANEVAL[1]["prompt"]: [right[1]],
        HUMANEVAL[2]["prompt"]: ["    pass\n"],
    }
    engine = ScriptedEngine({})
    engine.model = SeveralAnswers(script)
    settings = {"repeats": 4, "metric": "pass@2,create_test", "gen_kwargs": SAMPLED}
    config = {"tasks": {"humaneval": settings}, "data_root": code_mirror, "allow_code_execution": True}
    evaluation = evaluate("anything", suite_from_config(config), engine)
    (outcome,) = evaluation.tasks
    assert outcome.outcomes == pytest.approx((5 / 6, 1.0, 0.0), abs=1e-12)
    assert outcome.other_metrics == {"pass@1,create_test": (0.5, 1.0, 0.0)}
    assert outcome.counts == {"empty": 1, "truncated": 0}
    rows = evaluation.answers.to_pylist()
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 3
    assert [row["answer"] for row in rows[:4]] == script[HUMANEVAL[0]["prompt"]]


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("humaneval", {"metric": "pass@10,create_test"}, r"pass@10 needs 10 answers to each item; set .*repeats=10"),
        ("humaneval", {"repeats": 4}, r"4 answers to an item are all the same without sampling"),
        ("humaneval", {"repeats": 4, "gen_kwargs": {"temperature": 0.8}}, r"without sampling; set .*do_sample: true"),
        ("humaneval", {"repeats": 0}, r"suite\.tasks\.humaneval\.repeats is 0"),
        ("mbpp", {"repeats": 4, "gen_kwargs": SAMPLED}, r"scores the first answer alone"),
        (
            "mbpp_instruct",
            {"repeats": 4, "gen_kwargs": SAMPLED, "metric": "pass@2,extract_code"},
            r"its scoring code knows pass@1 alone",
        ),
    ],
)
def test_answers_that_would_be_drawn_in_vain(
    code_mirror: Path, task: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraftbenchError, match=message):
        scored(task, code_mirror, {}, **settings)


@pytest.mark.skipif("GRAFTBENCH_DATA" not in os.environ, reason="GRAFTBENCH_DATA names no mirror of data sets")
@pytest.mark.parametrize(("answer", "score"), [("canonical", 100.0), ("negated", 0.0), ("empty", 0.0)])
def test_the_real_humaneval(answer: str, score: float) -> None:
    root = Path(os.environ["GRAFTBENCH_DATA"])
    file = root / "openai/openai_humaneval/openai_humaneval/test.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    problems = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    solutions = {
        "canonical": lambda problem: problem["canonical_solution"],
        "negated": negated,
        "empty": lambda problem: "    pass\n",
    }
    outcome = scored("humaneval", root, {problem["prompt"]: solutions[answer](problem) for problem in problems})
    assert len(outcome.outcomes) == len(problems) == 164
    assert outcome.score == score, [
        problem["task_id"] for problem, each in zip(problems, outcome.outcomes, strict=True) if each != score / 100
    ]
