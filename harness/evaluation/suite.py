"""A suite: which lm-eval tasks measure which capability, on which data, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError, unknown_name

SPLITS = ("test", "validation")


@dataclass
class TaskSpec:
    """One lm-eval task of a suite. Every field may be left out."""

    capability: str | None = None
    """The capability that it measures; several tasks may share one. Default: the task's own name."""
    metric: str | None = None
    """The metric that counts, as lm-eval names it: `metric,filter` (`exact_match,strict-match`). Default: the
    task's first."""
    chance: float = 0.0
    """Expected score of guessing, in 0..1."""
    num_fewshot: int | None = None
    """Examples in the prompt. Default: what the task declares, else none."""
    limit: int | None = None
    """Use only this many first items. Default: the suite's limit."""
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    """Settings of the generation that replace the task's own, such as `max_gen_toks`."""
    repeats: int | None = None
    """Answers drawn for each item, from which `pass@k` is estimated; more than one needs sampling, such as
    `gen_kwargs: {do_sample: true, temperature: 0.8}`. Default: as the task declares, else one."""
    apply_chat_template: bool | None = None
    """Put this task's prompts into the chat template, or not. Default: as the suite says."""
    validation: dict[str, Any] = field(default_factory=dict)
    """Which items choose hyper-parameters: `{split: NAME}` takes another split of the data; `{hash: 0.2}` takes that
    share of the test split by a hash of each item, and leaves the rest to `split: test`. Default: the split that the
    task or its mirror calls validation, if any."""
    cluster: dict[str, str] = field(default_factory=dict)
    """Which items belong together, so that statistics draw them together: `{family: drop, field: passage}` puts those
    with the same value of that field of the data into one cluster, over all tasks of the same family. Default: every
    item stands alone."""
    held_out: bool = False
    """Never used to choose anything: `split: validation` leaves the task out."""
    general: bool = False
    """No expert was trained for it, so that a loss here is forgetting."""
    verified: bool = True
    """Whether the task was run on its real data when the suite was written; where not, only on hand-made items with
    the same fields."""


@dataclass
class Suite:
    """The tasks on which models are compared, and everything of their evaluation that is not the model or the
    engine.

    These fields are the schema of the configuration group `suite`.
    """

    name: str = "custom"
    """Name of the suite; boards are kept by it."""
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    """The tasks by their lm-eval name, each with what differs from its declaration. A group or a tag of lm-eval's
    stands for its tasks; they get the same settings (a limit holds for each) and are reported as one, every item
    counting the same."""
    data_root: Path | None = None
    """Folder that mirrors data sets: `<data set id>/<configuration or "default">/<split>.jsonl` (or
    `.parquet`). Tasks whose data lie here read them here; the others are left to the `datasets` library (the
    hub or its cache)."""
    include_path: list[str] = field(default_factory=list)
    """Folders with task declarations of one's own, in lm-eval's format; they win over stock tasks of the same
    name."""
    split: str = "test"
    """`test`, or `validation`: items for choosing hyper-parameters, which a board does not use."""
    limit: int | None = None
    """Use only this many first items of every task; for trials."""
    apply_chat_template: bool = False
    """Put prompts into the tokenizer's chat template."""
    fewshot_as_multiturn: bool = True
    """With a chat template, few-shot examples become turns of the conversation instead of one long
    message."""
    system_instruction: str | None = None
    """System message or first text of every prompt."""
    allow_code_execution: bool = False
    """Run code that the models write (in the sandbox); tasks that need it are refused otherwise."""
    allow_truncation: bool = False
    """Cut the beginning off prompts that do not fit the model's context, instead of refusing to start."""
    seed: int = 1234
    """Seeds the draw of few-shot examples and, where a task samples, the generation."""

    def asked(self) -> dict[str, TaskSpec]:
        """The tasks that are run: without the held-out ones where items choose hyper-parameters."""
        return {name: spec for name, spec in self.tasks.items() if self.split == "test" or not spec.held_out}


def suite_from_config(config: Mapping[str, Any]) -> Suite:
    """The suite that a configuration describes.

    Raises:
        GraftbenchError: an unknown option, an unknown split, no task, or a value out of range.
    """
    given = {str(name): value for name, value in config.items()}
    _check_names("option of suite", given, Suite)
    tasks = {str(name): _task_spec(str(name), value) for name, value in (given.pop("tasks", None) or {}).items()}
    include_path = [str(Path(folder).expanduser().absolute()) for folder in given.pop("include_path", None) or []]
    root = given.pop("data_root", None)
    data_root = Path(root).expanduser().absolute() if root is not None else None
    if data_root is not None and not data_root.is_dir():
        raise GraftbenchError(f"suite.data_root={root} is no folder; it should mirror data sets: <id>/<configuration>/")
    if not isinstance(given.get("seed", 0), int):
        raise GraftbenchError(f"suite.seed={given['seed']}; it must be a whole number")
    suite = Suite(**given, tasks=tasks, include_path=include_path, data_root=data_root)
    if not suite.tasks:
        raise GraftbenchError(
            f"suite '{suite.name}' has no tasks.\n"
            "Name lm-eval tasks (in quotes, for the shell): 'suite.tasks={gsm8k:{limit:20},ifeval:{}}'"
        )
    if suite.split not in SPLITS:
        raise unknown_name("value of suite.split", suite.split, SPLITS)
    _check_limit("suite.limit", suite.limit)
    for name in ("apply_chat_template", "fewshot_as_multiturn", "allow_code_execution", "allow_truncation"):
        _check_switch(f"suite.{name}", getattr(suite, name))
    return suite


def _task_spec(name: str, value: Any) -> TaskSpec:
    if value is not None and not isinstance(value, Mapping):
        raise GraftbenchError(f"suite.tasks.{name}={value}: it takes settings, such as {{limit:20}}, or {{}} for none")
    given = {str(key): item for key, item in (value or {}).items()}
    _check_names(f"option of suite.tasks.{name}", given, TaskSpec)
    mappings = {
        key: _mapping(f"suite.tasks.{name}.{key}", given.get(key)) for key in ("gen_kwargs", "validation", "cluster")
    }
    spec = TaskSpec(**{**given, **mappings})
    _check_limit(f"suite.tasks.{name}.limit", spec.limit)
    if not 0.0 <= spec.chance < 1.0:
        raise GraftbenchError(
            f"suite.tasks.{name}.chance is {spec.chance}; it is the expected score of guessing, in 0..1"
        )
    if spec.num_fewshot is not None and spec.num_fewshot < 0:
        raise GraftbenchError(f"suite.tasks.{name}.num_fewshot is {spec.num_fewshot}; it must be 0 or more")
    if spec.repeats is not None and (not isinstance(spec.repeats, int) or spec.repeats < 1):
        raise GraftbenchError(f"suite.tasks.{name}.repeats is {spec.repeats}; it must be a whole number, 1 or more")
    for key in ("held_out", "general", "verified"):
        _check_switch(f"suite.tasks.{name}.{key}", getattr(spec, key))
    if spec.apply_chat_template is not None:
        _check_switch(f"suite.tasks.{name}.apply_chat_template", spec.apply_chat_template)
    _check_validation(f"suite.tasks.{name}", spec)
    if spec.cluster and spec.cluster.keys() != {"family", "field"}:
        raise GraftbenchError(f"suite.tasks.{name}.cluster is {spec.cluster}; it takes {{family: NAME, field: NAME}}")
    return spec


def _check_validation(where: str, spec: TaskSpec) -> None:
    if not spec.validation:
        return
    if spec.held_out:
        raise GraftbenchError(f"{where} is held out, so that it has no validation items; leave one of the two out")
    if len(spec.validation) != 1 or next(iter(spec.validation)) not in ("hash", "split"):
        raise GraftbenchError(f"{where}.validation is {spec.validation}; it takes {{hash: 0.2}} or {{split: NAME}}")
    share = spec.validation.get("hash")
    if "hash" in spec.validation and not (isinstance(share, float) and 0.0 < share < 1.0):
        raise GraftbenchError(f"{where}.validation.hash is {share}; it is a share of the items, between 0 and 1")


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise GraftbenchError(f"{name} is {value}; it takes settings, such as {{name: value}}")
    return {str(key): item for key, item in (value or {}).items()}


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise GraftbenchError(f"{name} is {value}; it must be true or false")


def _check_names(kind: str, given: Mapping[str, Any], schema: type) -> None:
    valid = [each.name for each in fields(schema)]
    for name in given:
        if name not in valid:
            raise unknown_name(kind, name, valid)


def _check_limit(name: str, limit: int | None) -> None:
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise GraftbenchError(f"{name} is {limit}; it must be a whole number of items, 1 or more, or null for all")
