"""Everything of an evaluation that can change a score, apart from the model and the engine, as a value to
compare and to digest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError
from harness.evaluation import sandbox
from harness.evaluation.declaration import FunctionReference
from harness.evaluation.mirror import declared_files
from harness.evaluation.plan import TaskPlan, plan_suite
from harness.evaluation.suite import Suite
from harness.files import canonical_json, file_digest, text_digest

# Keys of a declaration that say how a task is listed or where its data lie, not what it asks or how it
# scores.
LISTING_KEYS = frozenset({"tag", "group", "task_alias", "dataset_path", "dataset_name", "dataset_kwargs"})


def fingerprint(suite: Suite) -> dict[str, Any]:
    """What determines the scores on this suite: JSON-able, equal for equal evaluations wherever the files
    lie.

    Covers each task's declaration, the code beside the scoring functions that it names, its version, the data
    files that it reads, few-shot count, limit, generation settings, metric; and split, prompt options, seeds
    and lm-eval's version. Reads files only: no network, no model, none of the tasks' code. Data on the hub
    are represented by their name alone, for their content is not known here.

    Raises:
        GraftbenchError: a task cannot be planned.
    """
    plans, problems = plan_suite(suite)
    if problems:
        raise GraftbenchError("\n".join(problems))
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "split": suite.split,
        "apply_chat_template": suite.apply_chat_template,
        "fewshot_as_multiturn": suite.fewshot_as_multiturn,
        "system_instruction": suite.system_instruction,
        "seed": suite.seed,
        "tasks": {plan.name: _task(plan) for plan in plans},
    }


def _task(plan: TaskPlan) -> dict[str, Any]:
    declared = {key: value for key, value in plan.declaration.fields.items() if key not in LISTING_KEYS}
    code = plan.declaration.code_files()
    if plan.declaration.unsafe_code:
        folder = Path(sandbox.__file__).parent
        code = [*code, folder / "sandbox.py", folder / "sandbox_server.py"]
    return {
        "declaration": text_digest(canonical_json(_plain(declared))),
        "code": _digest_of(code),
        "version": str((plan.declaration.fields.get("metadata") or {}).get("version")),
        "data": _data(plan),
        "capability": plan.capability,
        "metric": plan.metric,
        "chance": plan.chance,
        "num_fewshot": plan.num_fewshot,
        "limit": plan.limit,
        "generation_kwargs": _plain(plan.generation_kwargs),
    }


def _data(plan: TaskPlan) -> dict[str, Any]:
    if plan.data is not None:
        return {split: file_digest(plan.data.files[split]) for split in plan.needed_splits()}
    files = declared_files(plan.declaration)
    if files:
        return {split: file_digest(file) for split, file in files.items()}
    fields = plan.declaration.fields
    return {key: _plain(fields.get(key)) for key in ("dataset_path", "dataset_name", "dataset_kwargs")}


def _digest_of(files: Iterable[Path]) -> str:
    """Digest of files by name and content; the folder that they lie in does not count."""
    return text_digest(canonical_json([[file.name, file_digest(file)] for file in files]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, FunctionReference) else value
