"""One evaluation: a model, a suite and an engine in; the outcome of every item out."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.errors import GraftbenchError
from harness.evaluation.circumstances import circumstances
from harness.evaluation.code_eval import code_eval_in_sandbox
from harness.evaluation.context import check_prompts_fit
from harness.evaluation.engines import Engine
from harness.evaluation.loading import loaded_task
from harness.evaluation.outcomes import ANSWER_COLUMNS, answers, pooled, task_outcome
from harness.evaluation.phases import PHASES, phases
from harness.evaluation.plan import TaskPlan, plan_suite
from harness.evaluation.preflight import preflight
from harness.evaluation.sandbox import code_execution_allowed, isolation
from harness.evaluation.suite import Suite
from harness.results.record import TaskOutcome

logger = logging.getLogger(__name__)

LIBRARIES = ("lm_eval", "transformers", "tokenizers", "torch", "datasets", "numpy")
"""Whose versions are recorded: numpy is what model-written code may import."""


@dataclass(frozen=True)
class Evaluation:
    """What came of one evaluation."""

    tasks: tuple[TaskOutcome, ...]
    """One per name in the suite, in its order."""
    answers: pa.Table
    """One row per item of every task; columns in `outcomes.ANSWER_COLUMNS`."""
    timings: dict[str, float]
    """Seconds: `load`, and each task by name; by phase they stand with the tasks."""
    circumstances: dict[str, Any]
    """What was found about the model and the machine; see `circumstances.circumstances`."""
    versions: dict[str, str]
    """Of the libraries that took part."""

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By name in the suite, how many answers were empty and how many ran into the limit of new tokens."""
        return {task.task: task.counts for task in self.tasks}

    def seconds_by_phase(self) -> dict[str, float]:
        """Loading the model, and over all tasks building prompts, answering and scoring."""
        phases = {phase: sum(task.timings[phase] for task in self.tasks) for phase in PHASES}
        return {"load": self.timings["load"], **phases}


def evaluate(model: str | Path, suite: Suite, engine: Engine) -> Evaluation:
    """Ask the model every item of the suite.

    Tasks are declared afresh for each call, because lm-eval's task objects keep settings of earlier calls;
    its caches stay off, because they do not tell models apart.

    Parameters:
        model: a checkpoint's folder, or a name on the Hugging Face hub.

    Raises:
        GraftbenchError: something is missing (before the model is loaded), or a score is not what it should
            be.
    """
    preflight(suite, model, getattr(engine, "max_length", None))
    plans, _ = plan_suite(suite)
    with (
        tempfile.TemporaryDirectory(prefix="graftbench-tasks-") as folder,
        _quiet_lm_eval(),
        code_execution_allowed(suite.allow_code_execution),
        code_eval_in_sandbox(),
    ):
        tasks = [loaded_task(plan, Path(folder)) for plan in plans]
        if "langdetect" in sys.modules:  # part of ifeval's scoring; it draws from the clock unless it is seeded
            sys.modules["langdetect"].DetectorFactory.seed = suite.seed
        started = time.perf_counter()
        lm = engine.load(model)
        timings = {"load": time.perf_counter() - started}
        _check_chat_template(lm, model, plans)
        check_prompts_fit(lm, plans, tasks, suite)
        outcomes, tables = [], []
        for plan, task in zip(plans, tasks, strict=True):
            started = time.perf_counter()
            with phases(lm) as seconds:
                results = _simple_evaluate(lm, str(model), task, plan, suite)
            outcome = task_outcome(plan, results)
            answered = answers(plan, outcome, results, partial(_token_count, lm), int(lm.max_gen_toks))
            took = time.perf_counter() - started
            timings[plan.entry] = timings.get(plan.entry, 0.0) + took
            rounded = {phase: round(value, 3) for phase, value in seconds.items()}
            outcomes.append(replace(outcome, counts=answered.counts(), timings=rounded))
            tables.append(answered.table)
            logger.info("%s: %.1f in %.1f s %s", plan.name, outcome.score, took, answered.counts())
        runs_code = any(plan.declaration.unsafe_code for plan in plans)
        found = circumstances(lm, isolation() if runs_code else None)
        del lm, tasks
        gc.collect()
    return Evaluation(
        tasks=pooled(plans, outcomes),
        answers=pa.concat_tables(tables) if tables else ANSWER_COLUMNS.empty_table(),
        timings=timings,
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        circumstances=found,
    )


def _check_chat_template(lm: Any, model: str | Path, plans: list[TaskPlan]) -> None:
    """The same as the pre-flight check, for models that lie on the hub."""
    if any(plan.apply_chat_template for plan in plans) and not getattr(lm.tokenizer, "chat_template", None):
        raise GraftbenchError(f"{model}: its tokenizer has no chat template; set suite.apply_chat_template=false")


def _simple_evaluate(lm: Any, model: str, task: Any, plan: TaskPlan, suite: Suite) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm,
        model_args={"pretrained": model},
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),  # without one, lm-eval builds its whole index
        limit=plan.limit,
        bootstrap_iters=0,  # intervals are the board's business
        log_samples=True,
        apply_chat_template=plan.apply_chat_template,
        fewshot_as_multiturn=suite.fewshot_as_multiturn,
        system_instruction=suite.system_instruction,
        random_seed=suite.seed,
        numpy_random_seed=suite.seed,
        torch_random_seed=suite.seed,
        fewshot_random_seed=suite.seed,
        confirm_run_unsafe_code=suite.allow_code_execution,
    )
    return results


def _token_count(lm: Any, text: str) -> int:
    return len(lm.tok_encode(text))


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Spare each evaluation lm-eval's survey of the machine (2 to 4 s: it runs `pip list`, and git in whatever
    folder this happens to be), the progress bars of reading files and building prompts, and the compilation of a
    prompt's template anew for every item and example (milliseconds each: minutes for MMLU)."""
    import datasets
    import lm_eval.api.task
    import lm_eval.evaluator
    import lm_eval.utils

    replaced: list[tuple[Any, str, Any]] = [
        (lm_eval.evaluator, "add_env_info", lambda storage: None),
        (lm_eval.evaluator, "get_git_commit_hash", lambda: None),
        (lm_eval.api.task, "tqdm", lambda items, **options: items),
        (lm_eval.utils.env, "from_string", lru_cache(maxsize=1024)(lm_eval.utils.env.from_string)),
    ]
    originals = [getattr(module, name) for module, name, _ in replaced]
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for module, name, replacement in replaced:
        setattr(module, name, replacement)
    try:
        yield
    finally:
        for (module, name, _), original in zip(replaced, originals, strict=True):
            setattr(module, name, original)
        if bars:
            datasets.enable_progress_bars()
