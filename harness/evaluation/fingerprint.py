"""Everything of an evaluation that can change a score, apart from the model and the engine, as a value to
compare and to digest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
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
    settings = {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "split": suite.split,
        "apply_chat_template": suite.apply_chat_template,
        "fewshot_as_multiturn": suite.fewshot_as_multiturn,
        "system_instruction": suite.system_instruction,
        "seed": suite.seed,
        "tasks": {plan.name: _task(suite, plan) for plan in plans},
    }
    return settings | ({"allow_truncation": True} if suite.allow_truncation else {})


def _task(suite: Suite, plan: TaskPlan) -> dict[str, Any]:
    declared = {key: value for key, value in plan.declaration.fields.items() if key not in LISTING_KEYS}
    code = plan.declaration.code_files()
    if plan.declaration.unsafe_code:
        folder = Path(sandbox.__file__).parent
        runners = ("code_eval", "sandbox", "sandbox_containment", "sandbox_server")
        code = [*code, *(folder / f"{name}.py" for name in runners)]
    settings = {
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
    return settings | _uncommon(suite, plan)


def _uncommon(suite: Suite, plan: TaskPlan) -> dict[str, Any]:
    """What few tasks have, and is left out where they have it not."""
    spec = suite.tasks[plan.entry]
    settings: dict[str, Any] = {name: True for name in ("general", "held_out") if getattr(spec, name)}
    if plan.entry != plan.name:
        settings["group"] = plan.entry
    if plan.repeats != 1:
        settings["repeats"] = plan.repeats
    if plan.apply_chat_template != suite.apply_chat_template:
        settings["apply_chat_template"] = plan.apply_chat_template
    if plan.partition is not None:
        part = "validation" if plan.partition.validation else "test"
        settings["partition"] = {"rule": "sha256", "share": plan.partition.share, "part": part}
    return settings


def _data(plan: TaskPlan) -> dict[str, Any]:
    if plan.data is not None:
        return {split: _digest_of_split(plan.data.files[split]) for split in plan.needed_splits()}
    files = declared_files(plan.declaration)
    if files:
        return {split: file_digest(file) for split, file in files.items()}
    fields = plan.declaration.fields
    return {key: _plain(fields.get(key)) for key in ("dataset_path", "dataset_name", "dataset_kwargs")}


def _digest_of_split(files: Sequence[Path]) -> str:
    """The file's digest, or that of the digests of all its files in their order."""
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else text_digest(canonical_json(digests))


def _digest_of(files: Iterable[Path]) -> str:
    """Digest of files by name and content; the folder that they lie in does not count."""
    return text_digest(canonical_json([[file.name, file_digest(file)] for file in files]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, FunctionReference) else value
