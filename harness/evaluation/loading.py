"""A planned task as lm-eval's own object, with its data and its scoring code."""

from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError
from harness.evaluation.code_eval import ask_for_pass_at
from harness.evaluation.plan import TaskPlan


def loaded_task(plan: TaskPlan, folder: Path) -> Any:
    """The task's object, with its data and its scoring code, so that what they lack shows before the model is
    loaded."""
    from lm_eval.tasks import TaskManager

    own = folder / plan.name
    own.mkdir()
    path = plan.write_declaration(own)
    try:
        task = next(iter(TaskManager(include_defaults=False).load([str(path)])["tasks"].values()))
    except Exception as error:  # any of its imports, its data set's reader, its templates
        raise GraftbenchError(
            f"task '{plan.name}' cannot be loaded ({plan.declaration.path}): "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if plan.pass_at not in (None, 1) and not ask_for_pass_at(task, plan.pass_at):
        raise GraftbenchError(f"task '{plan.name}' has no metric '{plan.metric}': its scoring code knows pass@1 alone")
    return task
