"""Hugging Face's metric `code_eval`, in our sandbox.

lm-eval's code tasks (HumanEval, MBPP and those that build on them) score with `evaluate.load("code_eval")`: a script
that is fetched from the hub and runs the model's code in a child process with nothing between it and the machine.
Within `code_eval_in_sandbox()` the same call gives a metric with the same interface and the same verdicts, which
fetches nothing and runs every program with `sandbox.run_program`.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import comb
from typing import Any

from harness.errors import GraftbenchError
from harness.evaluation.sandbox import Limits, run_program

CPU_SECONDS = 3.0
"""As much as Hugging Face's metric gives a program, there in elapsed time: a busy machine must not decide a score."""
MEMORY_MIB = 2048
"""HumanEval+ compares large inputs; Hugging Face's metric sets no limit."""


class CodeEval:
    """The metric. A program is a candidate, a line break, and the tests, as Hugging Face's metric joins them."""

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 1,
        timeout: float = CPU_SECONDS,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run every candidate of every problem.

        Args:
            references: the tests of each problem.
            predictions: the candidates for each problem.
            k: which pass@k to estimate; those that some problem has fewer than k candidates for are left out.
            num_workers: accepted for the interface; programs run one after another.
            timeout: processor time of one program, in seconds.

        Returns:
            `pass@k` by k, in 0..1, as a mean over the problems; and by problem, for each candidate its number and
            a mapping of `task_id`, `completion_id`, `passed` and `result` ("passed", or why not).

        Raises:
            GraftbenchError: code execution is not allowed, or there are not as many predictions as references.
        """
        if len(references) != len(predictions):
            raise GraftbenchError(f"code_eval: {len(predictions)} lists of candidates for {len(references)} problems")
        limits = Limits(cpu_seconds=timeout, wall_seconds=4 * timeout, memory_mib=MEMORY_MIB)
        results: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for problem, (candidates, tests) in enumerate(zip(predictions, references, strict=True)):
            for number, candidate in enumerate(candidates):
                outcome = run_program(f"{candidate}\n{tests}", limits)
                verdict = {
                    "task_id": problem,
                    "completion_id": number,
                    "passed": outcome.passed,
                    "result": "passed" if outcome.passed else f"failed: {outcome.reason}",
                }
                results[problem].append((number, verdict))
        counts = [
            (len(verdicts), sum(verdict["passed"] for _, verdict in verdicts))
            for verdicts in (results[problem] for problem in range(len(references)))
        ]
        scores = {
            f"pass@{each}": sum(pass_at_k(samples, passed, each) for samples, passed in counts) / len(counts)
            for each in k
            if counts and all(samples >= each for samples, _ in counts)
        }
        return scores, dict(results)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that one of k candidates passes, drawn without replacement from `samples` of which `passed` do.

    The unbiased estimator of Chen et al. (2021, arXiv:2107.03374, equation 1), in exact integers:
    1 − C(n−c, k) / C(n, k).

    Raises:
        GraftbenchError: there are fewer than k samples, or k is not positive.
    """
    if not 1 <= k <= samples:
        raise GraftbenchError(f"pass@{k} needs at least {max(k, 1)} samples for each problem, there are {samples}")
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


def ask_for_pass_at(task: Any, k: int) -> bool:
    """Have one of lm-eval's tasks estimate pass@k for this k too; False where its scoring takes no k.

    Args:
        task: the task's object; its own metrics are told (lm-eval keeps their options in a private field).
        k: at most the number of answers to an item.
    """
    takers = [options for options in task._metric_fn_kwargs.values() if "k" in options]
    for options in takers:
        declared = options["k"] if isinstance(options["k"], list) else [options["k"]]
        options["k"] = sorted({*declared, k})
    return bool(takers)


@contextlib.contextmanager
def code_eval_in_sandbox() -> Iterator[None]:
    """Within this block `evaluate.load("code_eval")` gives our metric; every other metric is loaded as ever."""
    import evaluate

    original = evaluate.load

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        return CodeEval() if path == "code_eval" else original(path, *arguments, **options)

    _forget_tasks_with_another()
    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original


def _forget_tasks_with_another() -> None:
    """Let lm-eval import scoring code again that has taken Hugging Face's metric, before this block."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lm_eval.tasks.") and any(
            getattr(value, "name", None) == "code_eval" and not isinstance(value, CodeEval)
            for value in vars(module).values()
        ):
            del sys.modules[name]
