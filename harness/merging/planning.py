"""Makes the plan of a merge: everything that can be checked is checked here, before the first weight is read."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import psutil
import torch

from harness.checkpoints import TensorInfo
from harness.checkpoints.opening import Model, Source, open_checkpoint
from harness.checkpoints.vocabulary import Vocabulary, match_vocabularies, tokenizer_problems
from harness.curvature import CurvatureSource
from harness.errors import GraftbenchError, all_of, unknown_name
from harness.files import readable_size
from harness.merging.compatibility import (
    configuration_problems,
    copied_from_base,
    dtype_problems,
    tensor_problems,
    with_head,
)
from harness.merging.pieces import entries_at_once
from harness.merging.plan import BASE, DEFAULT_MEMORY_BYTES, Execution, MergePlan
from methods import Method
from methods.interface import CurvatureKind

log = logging.getLogger(__name__)

OUTPUT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def plan_merge(
    name: str,
    method: Method,
    base: Source,
    experts: Mapping[str, Source],
    curvature_files: Mapping[str, Path | None],
    dtype: str | None = None,
    execution: Execution | None = None,
    vocabulary: str = "strict",
    tokenizer: str = BASE,
) -> MergePlan:
    """Open all inputs, check them against one another, and say how they will be merged.

    Args:
        name: the method's name.
        method: the method with its hyper-parameters.
        base: the base model, see `open_checkpoint`.
        experts: each expert, likewise.
        curvature_files: for each expert, the file of the curvature that the method asks for, where there is one.
        dtype: data type of the output (`float32`, `float16`, `bfloat16`); None keeps the base's.
        execution: devices, threads and memory; None takes the CPU's cores and 1 GB.
        vocabulary: how rows of embedding and head are matched: `strict`, `base` or `union`.
        tokenizer: the model that gives the output its tokenizer: base, or an expert's name.

    Raises:
        GraftbenchError: something is wrong with the inputs. One message lists all of it: file, tensor and remedy.
    """
    problems: list[str] = []
    names = _experts_used(method, sorted(experts))
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise unknown_name("dtype", dtype, OUTPUT_DTYPES)
    if tokenizer not in (BASE, *names):
        raise unknown_name("model in tokenizer", tokenizer, [BASE, *names])
    with ExitStack() as opened:
        base_model = _open(base, problems, opened)
        found = {expert: _open(experts[expert], problems, opened) for expert in names}
        models = {expert: model for expert, model in found.items() if model is not None}
        problems += _curvature_problems(method, models, curvature_files)
        if base_model is None:
            raise all_of(problems)
        for expert, model in models.items():
            problems += configuration_problems(base_model, expert, model)
        matched, more = match_vocabularies(vocabulary, base_model, models)
        problems += more
        if problems:
            raise all_of(problems)
        gives_tokenizer = base_model if tokenizer == BASE else models[tokenizer]
        problems += tokenizer_problems(matched, base_model, gives_tokenizer, models)
        sources = {
            expert: matched.matched(with_head(base_model, expert, model), expert) for expert, model in models.items()
        }
        base_source = matched.matched(base_model)
        copied = copied_from_base(base_model, sources)
        left_out = {info.name for info in copied}
        parameters = tuple(info for info in base_source.tensors.values() if info.name not in left_out)
        wanted = {info.name: info for info in parameters}
        for expert, source in sources.items():
            problems += dtype_problems(base_model, expert, models[expert])
            problems += tensor_problems(wanted, expert, source, models[expert].buffers)
        curvature = _curvature(method, names, curvature_files, matched, wanted, problems)
        if curvature is not None:
            opened.callback(curvature.close)
        plan = MergePlan(
            name=name,
            method=method,
            base_model=base_model,
            models=models,
            base=base_source,
            experts=sources,
            curvature=curvature,
            vocabulary=matched,
            tokenizer=tokenizer,
            parameters=parameters,
            copied=tuple(copied),
            execution=execution or Execution(),
            dtype=OUTPUT_DTYPES[dtype] if dtype else None,
        )
        plan, more = _within_memory(plan)
        problems += more
        if problems:
            raise all_of(problems)
        _warn_of_other_bases(plan)
        opened.pop_all()  # from here on, closing is the plan's
        return plan


def _open(source: Source, problems: list[str], opened: ExitStack) -> Model | None:
    try:
        model = open_checkpoint(source)
    except GraftbenchError as error:
        problems.append(str(error))
        return None
    opened.callback(model.close)
    return model


def _within_memory(plan: MergePlan) -> tuple[MergePlan, list[str]]:
    """The plan with its memory budget settled: what the user set, or 1 GB, or what one piece needs beyond that."""
    execution = plan.execution
    costs = {
        info.name: plan.bytes_at_once(
            info, min(info.entries, entries_at_once(info, plan.granularity, execution.piece_entries))
        )
        for info in plan.parameters
    }
    largest = max(costs, key=lambda name: costs[name], default=None)
    needed = costs[largest] if largest is not None else 0
    if execution.memory_bytes is not None and needed > execution.memory_bytes:
        return plan, [
            f"memory_gb={execution.memory_bytes / 1e9:g} is too little: '{largest}' takes {readable_size(needed)}, "
            f"since method '{plan.name}' works on {plan.granularity} granularity; "
            f"give memory_gb={math.ceil(needed / 1e6) / 1e3:g}"
        ]
    available = psutil.virtual_memory().available
    if needed > available:
        return plan, [
            f"'{largest}' takes {readable_size(needed)}, since method '{plan.name}' works on {plan.granularity} "
            f"granularity, but this machine has {readable_size(available)} of memory left"
        ]
    budget = execution.memory_bytes or max(DEFAULT_MEMORY_BYTES, needed)
    return replace(plan, execution=replace(execution, memory_bytes=budget)), []


def resolve_devices(name: str) -> tuple[torch.device, ...]:
    """The devices of that name: `cpu`, `cuda`, `cuda:N`, or `cuda:all` for every GPU of this machine.

    Raises:
        GraftbenchError: there is no such device on this machine.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda:all" and count:
        return tuple(torch.device("cuda", index) for index in range(count))
    return (resolve_device(name.removesuffix(":all")),)


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        GraftbenchError: there is no such device on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown_name("device", name, ["cpu", "cuda", "cuda:0"]) from None
    if device.type not in ("cpu", "cuda"):
        raise GraftbenchError(f"device '{name}' is not supported; use cpu or cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            raise GraftbenchError(
                f"device '{name}' does not exist: this machine shows {count} CUDA devices; use device=cpu"
            )
    return device


def _experts_used(method: Method, names: Sequence[str]) -> tuple[str, ...]:
    """The experts that the method reads; every hyper-parameter given by expert must name experts that exist."""
    if not names:
        raise GraftbenchError("there are no experts to merge; name them with zoo.experts.NAME=PATH")
    try:
        used = method.experts_used(names)
    except ValueError as error:
        raise GraftbenchError(f"method: {error}") from error
    weights = [method.weights.get(expert, 1.0) for expert in used]
    if not any(weights):
        raise GraftbenchError("method.weights gives every expert 0, so that there is nothing to merge")
    for field in fields(method):
        value = getattr(method, field.name)
        if not isinstance(value, dict):
            continue
        for expert in value:
            if expert not in names:
                raise unknown_name(f"expert in method.{field.name}", expert, names)
        missing = [expert for expert in used if expert not in value]
        if missing and field.name != "weights":
            raise GraftbenchError(
                f"method.{field.name} has no value for expert '{missing[0]}'; give one number, or all"
            )
    return used


def _curvature_problems(method: Method, models: Mapping[str, Model], files: Mapping[str, Path | None]) -> list[str]:
    """Experts without the curvature that the method needs."""
    kind = method.curvature_kind()
    if kind is None:
        return []
    if kind not in get_args(CurvatureKind):
        raise unknown_name("curvature that the method asks for", kind, get_args(CurvatureKind))
    option = "fisher" if kind == "fisher" else "second_moments"
    problems = []
    for name, model in models.items():
        if model.is_adapter:
            problems.append(
                f"expert '{name}' ({model.source}) is a LoRA adapter: its optimizer has second moments of the two "
                "low-rank factors, not of the weights, so a method that needs curvature cannot use it; take "
                "method.curvature=delta, or choose a method that needs none (linear, ties, …)"
            )
        elif files.get(name) is None:
            problems.append(
                f"this method needs the curvature '{kind}' of expert '{name}', and there is none beside its weights; "
                f"name the file with zoo.{option}.{name}=PATH, take method.curvature=delta, or choose a method that "
                "needs none (linear, ties, …)"
            )
    return problems


def _curvature(
    method: Method,
    names: Sequence[str],
    files: Mapping[str, Path | None],
    vocabulary: Vocabulary,
    parameters: Mapping[str, TensorInfo],
    problems: list[str],
) -> CurvatureSource | None:
    kind = method.curvature_kind()
    if kind is None:
        return None
    found = {name: path for name in names if (path := files.get(name)) is not None}
    shapes = {name: info.shape for name, info in parameters.items()}
    return CurvatureSource(
        kind, found, shapes, wrap=lambda expert, source: vocabulary.matched(source, expert), problems=problems
    )


def _warn_of_other_bases(plan: MergePlan) -> None:
    if plan.curvature is None:
        return
    for name, digest in plan.curvature.base_digests().items():
        if digest != plan.base_model.weights_digest:
            log.warning(
                "the second moments of expert '%s' say that it was trained from another base than %s, or from other "
                "files of it",
                name,
                plan.base_model.source,
            )
