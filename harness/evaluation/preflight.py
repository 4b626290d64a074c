"""What an evaluation will need, checked before anything expensive: before models are merged, loaded or
asked."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from harness.errors import GraftbenchError
from harness.evaluation.declaration import EMBEDDED_TASKS
from harness.evaluation.plan import TaskPlan, missing_mirror_note, plan_suite
from harness.evaluation.suite import Suite


def preflight(suite: Suite) -> None:
    """Check that every task of the suite can be run and scored here.

    Raises:
        GraftbenchError: with everything that is missing, one line or two each, and what to do about it.
    """
    plans, problems = plan_suite(suite)
    for plan in plans:
        problems += _data_problems(suite, plan)
        problems += _code_problems(suite, plan)
    if problems:
        raise GraftbenchError("\n".join(dict.fromkeys(problems)))


def _data_problems(suite: Suite, plan: TaskPlan) -> Iterator[str]:
    declared = plan.declaration.fields
    if plan.data is None and EMBEDDED_TASKS in plan.declaration.path.parents:
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
            "Put them in a mirror folder and name it with suite.data_root."
        )


def _code_problems(suite: Suite, plan: TaskPlan) -> Iterator[str]:
    if plan.declaration.unsafe_code and not suite.allow_code_execution:
        yield (
            f"task '{plan.name}' runs code that the model writes, and code execution is off.\n"
            "Set suite.allow_code_execution=true to allow it, or leave the task out."
        )
        return
    source = "\n".join(file.read_text(encoding="utf-8") for file in plan.declaration.code_files())
    if "immutabledict" in source or "langdetect" in source or "punkt_tab" in source:
        yield from _instruction_following_problems(plan, source)
    if 'load("code_eval")' in source and os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
        yield (
            f"task '{plan.name}' scores with Hugging Face's code_eval, which runs the model's code outside of "
            "graftbench's sandbox.\n"
            "Set HF_ALLOW_CODE_EVAL=1 in the environment to accept that, or leave the task out."
        )


def _instruction_following_problems(plan: TaskPlan, source: str) -> Iterator[str]:
    modules = [name for name in ("langdetect", "immutabledict", "nltk") if f"import {name}" in source]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        yield f"task '{plan.name}' needs {', '.join(missing)}; install with: pip install 'lm-eval[ifeval]'"
    elif "punkt_tab" in source:
        import nltk

        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            # Without it lm-eval fails only when an item that counts sentences is scored: after the whole
            # generation.
            yield (
                f"task '{plan.name}' needs NLTK's tokenizer 'punkt_tab', which is in none of NLTK's folders.\n"
                "Fetch it with `python -m nltk.downloader punkt_tab`, or let NLTK_DATA name a folder that holds "
                "tokenizers/punkt_tab."
            )
