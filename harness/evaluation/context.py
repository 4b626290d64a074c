"""Whether a model can be asked a suite: its chat template and its context, by its files and then by the prompts."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError
from harness.evaluation.plan import TaskPlan
from harness.evaluation.suite import Suite

log = logging.getLogger(__name__)

DEFAULT_ANSWER_TOKENS = 256
"""New tokens that lm-eval's models give a task that sets no limit."""

# Where configurations say how many positions a model has, in the order in which lm-eval asks.
_POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")


def model_problems(folder: Path, suite: Suite, plans: Sequence[TaskPlan], max_length: int | None) -> Iterator[str]:
    """What of the suite the model in a folder cannot be asked, as far as its files tell.

    Args:
        folder: the checkpoint; what is no folder (a name on the hub) is not judged.
        suite: its settings.
        plans: its tasks.
        max_length: the longest prompt and answer together that the engine was told, in tokens; None leaves it to the
            model.
    """
    if not folder.is_dir():
        return
    if any(plan.apply_chat_template for plan in plans) and not has_chat_template(folder):
        yield (
            f"{folder}: its tokenizer has no chat template, which suite '{suite.name}' needs.\n"
            "Set suite.apply_chat_template=false, or take the tokenizer of an expert that has one with tokenizer=NAME."
        )
    context = max_length or context_length(folder)
    for plan in plans:
        if context is not None and answer_tokens(plan) >= context:
            yield (
                f"task '{plan.name}' allows answers of {answer_tokens(plan)} tokens, but the context of {folder.name} "
                f"is {context} tokens for prompt and answer together.\n"
                f"Lower suite.tasks.{plan.entry}.gen_kwargs.max_gen_toks, or leave the task out."
            )


def answer_tokens(plan: TaskPlan) -> int:
    """The longest answer to an item of the task, in tokens; 0 where choices are only scored."""
    if plan.declaration.output_type != "generate_until":
        return 0
    return DEFAULT_ANSWER_TOKENS if plan.max_gen_toks is None else plan.max_gen_toks


def context_length(folder: Path) -> int | None:
    """The positions that a checkpoint's configuration states; None where it states none."""
    config = _json(folder / "config.json")
    for part in (config, config.get("text_config") or {}):
        for key in _POSITIONS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def has_chat_template(folder: Path) -> bool:
    """Whether the files of a checkpoint's tokenizer hold a chat template."""
    files = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    return any((folder / name).exists() for name in files) or bool(
        _json(folder / "tokenizer_config.json").get("chat_template")
    )


def check_prompts_fit(lm: Any, plans: Sequence[TaskPlan], tasks: Sequence[Any], suite: Suite) -> None:
    """Compare every prompt with the model's context, before any is answered: lm-eval would cut the beginning off, and
    with it instructions and examples, and only log that.

    Args:
        lm: the loaded model; one that states no `max_length` is not judged.
        plans: the suite's tasks.
        tasks: the same as lm-eval's objects; their requests are built and thrown away.
        suite: its settings; `allow_truncation` turns the error into a warning.

    Raises:
        GraftbenchError: prompts are too long; by task, how many and how long.
    """
    context = getattr(lm, "max_length", None)
    if not isinstance(context, int):
        return
    problems = []
    for plan, task in zip(plans, tasks, strict=True):
        room = context - answer_tokens(plan)
        longest, count, items = _too_long(lm, _requests(lm, plan, task, suite), room)
        if count:
            problems.append(
                f"task '{plan.name}': {count} of {items} prompts are longer than the {room} tokens that the context of "
                f"{context} leaves them beside an answer of {answer_tokens(plan)}; the longest has {longest}."
            )
    if problems and suite.allow_truncation:
        log.warning("prompts that do not fit lose their beginning:\n%s", "\n".join(problems))
    elif problems:
        raise GraftbenchError(
            "\n".join(problems)
            + "\nGive fewer examples (num_fewshot) or shorter answers (gen_kwargs.max_gen_toks), raise "
            "backend.max_length if the model allows it, or set suite.allow_truncation=true to cut their beginning off."
        )


def _requests(lm: Any, plan: TaskPlan, task: Any, suite: Suite) -> list[Any]:
    """The requests of a task, as lm-eval will build them again."""
    chat: dict[str, Any] = {}
    if plan.apply_chat_template:
        chat = {
            "apply_chat_template": True,
            "fewshot_as_multiturn": suite.fewshot_as_multiturn,
            "chat_template": lm.apply_chat_template,
            "tokenizer_name": getattr(lm, "tokenizer_name", ""),
        }
    task.set_fewshot_seed(suite.seed)
    task.build_all_requests(limit=plan.limit, system_instruction=suite.system_instruction, **chat)
    requests = list(task.instances)
    with contextlib.suppress(AttributeError):
        task._instances = None  # lm-eval builds its own
    return requests


def _too_long(lm: Any, requests: Sequence[Any], room: int) -> tuple[int, int, int]:
    """The longest prompt in tokens, how many are longer than `room`, and how many items there are. A choice counts to
    its prompt."""
    longest: dict[int, int] = {}
    for request in requests:
        if request.request_type == "loglikelihood_rolling":  # asked window by window
            continue
        text = "".join(str(each) for each in request.args[:2] if isinstance(each, str))
        # A token stands for at least one byte, and special tokens are few: most prompts need no tokenizer.
        tokens = len(text.encode()) + 8
        longest[request.doc_id] = max(
            longest.get(request.doc_id, 0), tokens if tokens <= room else len(lm.tok_encode(text))
        )
    over = [tokens for tokens in longest.values() if tokens > room]
    return max(over, default=0), len(over), len(longest)


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
