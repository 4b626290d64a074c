"""What an evaluation will need, checked before anything expensive: before models are merged, loaded or
asked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness.errors import GraftbenchError
from harness.evaluation.context import model_problems
from harness.evaluation.plan import TaskPlan, missing_mirror_note, plan_suite
from harness.evaluation.requirements import missing_requirements
from harness.evaluation.suite import Suite

log = logging.getLogger(__name__)


def preflight(suite: Suite, model: str | Path | None = None, max_length: int | None = None) -> None:
    """Check that every task of the suite can be run and scored here, and asked of the model.

    Args:
        suite: the tasks.
        model: the checkpoint that will be asked, or one with the same configuration and tokenizer; None leaves the
            model out, as does a name on the hub.
        max_length: the longest prompt and answer together that the engine was told, in tokens; None leaves it to the
            model.

    Raises:
        GraftbenchError: with everything that is missing, one line or two each, and what to do about it.
    """
    plans, problems = plan_suite(suite)
    for entry in dict.fromkeys(plan.entry for plan in plans):
        problems += _problems_of(suite, [plan for plan in plans if plan.entry == entry])
    if model is not None:
        problems += model_problems(Path(model).expanduser(), suite, plans, max_length)
    if problems:
        raise GraftbenchError(_with_advice_once(problems))
    _say_what_to_know(suite)


def _problems_of(suite: Suite, plans: Sequence[TaskPlan]) -> Iterator[str]:
    """The problems of a task, or of a group's first task that has any, with the names of the others."""
    found = {plan.name: [*_data_problems(suite, plan), *_code_problems(suite, plan)] for plan in plans}
    failing = [name for name, problems in found.items() if problems]
    if not failing:
        return
    others = failing[1:]
    for problem in found[failing[0]]:
        fact, line, advice = problem.partition("\n")
        yield fact + (f" So or alike {len(others)} more tasks of '{plans[0].entry}'." if others else "") + line + advice


def _with_advice_once(problems: Iterable[str]) -> str:
    """The problems, those with the same advice (what follows their first line) together."""
    facts: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        fact, _, advice = problem.partition("\n")
        facts.setdefault(advice, []).append(fact)
    return "\n".join(line for advice, lines in facts.items() for line in (*lines, advice) if line)


def _say_what_to_know(suite: Suite) -> None:
    left_out = [name for name in suite.tasks if name not in suite.asked()]
    if left_out:
        log.info("held out, so that hyper-parameters are chosen without them: %s", ", ".join(left_out))
    unverified = [name for name, spec in suite.asked().items() if not spec.verified]
    if unverified:
        log.warning(
            "not yet verified on the real data, only on hand-made items with the same fields: %s; compare their first "
            "scores with published ones",
            ", ".join(unverified),
        )


def _data_problems(suite: Suite, plan: TaskPlan) -> Iterator[str]:
    declared = plan.declaration.fields
    if plan.data is None and str(declared.get("dataset_path")).startswith("graftbench/"):
        yield (
            f"task '{plan.name}': its items come with zoo=tiny.\n"
            "Name suite.data_root=<home>/zoo/tiny-…/data to ask them of other models."
        )
        return
    if plan.data is not None or declared.get("custom_dataset") is not None:
        return
    if declared.get("dataset_path") in ("json", "parquet", "csv", "text"):
        return
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return
    import datasets

    name = declared["dataset_path"], declared.get("dataset_name")
    try:
        datasets.load_dataset_builder(*name)
    except Exception as error:  # the library raises half a dozen kinds, all of which mean: not here
        shown = "/".join(str(part) for part in name if part)
        yield (
            f"task '{plan.name}': its data '{shown}' are {missing_mirror_note(suite, plan.declaration)}, nor "
            f"cached, and HF_HUB_OFFLINE forbids fetching them ({type(error).__name__}).\n"
            "Put them in a mirror folder (`graftbench data fetch` makes one where there is a network) and name it with "
            "suite.data_root."
        )


def _code_problems(suite: Suite, plan: TaskPlan) -> Iterator[str]:
    source = "\n".join(file.read_text(encoding="utf-8") for file in plan.declaration.code_files())
    runs_code = plan.declaration.unsafe_code or 'load("code_eval")' in source
    if runs_code and not suite.allow_code_execution:
        yield (
            f"task '{plan.name}' runs code that the model writes, and code execution is off.\n"
            "Set suite.allow_code_execution=true to allow it, or leave the task out."
        )
        return
    yield from missing_requirements(plan.declaration)
