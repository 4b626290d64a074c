"""The plan of a merge: everything that can be checked is checked here, before the first weight is read."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args

import torch

from harness.checkpoints import Checkpoint, TensorInfo
from harness.curvature import CurvatureSource
from harness.errors import GraftbenchError, unknown_name
from harness.merging.source import method_source_digest
from methods import Method
from methods.interface import CurvatureKind

log = logging.getLogger(__name__)

OUTPUT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

SHAPELESS_SETTINGS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "tie_word_embeddings",
)
"""Settings of an architecture that change what weights mean without changing their shapes."""


@dataclass(frozen=True)
class MergePlan:
    """A merge that is ready to run. Use it as a context manager to close its files."""

    name: str
    method: Method
    base: Checkpoint
    experts: dict[str, Checkpoint]
    """The experts that the method reads, in alphabetical order, whatever order the user named them in."""
    curvature: CurvatureSource | None
    parameters: tuple[TensorInfo, ...]
    """The base's tensors in the order of their bytes on disk."""
    device: torch.device
    dtype: torch.dtype | None
    """Data type of the output; None keeps each tensor's as the base has it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            closing.callback(self.base.close)
            for expert in self.experts.values():
                closing.callback(expert.close)
            if self.curvature is not None:
                closing.enter_context(self.curvature)

    def recipe(self) -> dict[str, Any]:
        """What determines the merged weights, and nothing else: method, hyper-parameters, input digests, data type."""
        return {
            "method": self.name,
            "source": method_source_digest(type(self.method)),
            "hyperparameters": asdict(self.method),
            "base": self.base.weights_digest,
            "experts": {name: expert.weights_digest for name, expert in self.experts.items()},
            "curvature": self.curvature.describe() if self.curvature is not None else None,
            "config": self.base.config_digest,
            "tokenizer": self.base.tokenizer_digest,
            "dtype": str(self.dtype).removeprefix("torch.") if self.dtype else "as the base",
        }


def plan_merge(
    name: str,
    method: Method,
    base: str | Path,
    experts: Mapping[str, str | Path],
    curvature_files: Mapping[str, Path | None],
    device: str = "cpu",
    dtype: str | None = None,
) -> MergePlan:
    """Open all inputs, check them against one another, and say how they will be merged.

    Args:
        name: the method's name.
        method: the method with its hyper-parameters.
        base: folder or hub name of the base model.
        experts: folder or hub name of each expert.
        curvature_files: for each expert, the file of the curvature that the method asks for, where there is one.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: data type of the output (`float32`, `float16`, `bfloat16`); None keeps the base's.

    Raises:
        GraftbenchError: something is wrong with an input; the message names file, tensor and remedy.
    """
    names = _experts_used(method, sorted(experts))
    torch_device = resolve_device(device)
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise unknown_name("dtype", dtype, OUTPUT_DTYPES)
    opened_base = Checkpoint(base)
    opened = {expert: Checkpoint(experts[expert]) for expert in names}
    for expert, checkpoint in opened.items():
        _check_same_layout(opened_base, expert, checkpoint)
    return MergePlan(
        name=name,
        method=method,
        base=opened_base,
        experts=opened,
        curvature=_curvature(method, names, curvature_files, opened_base),
        parameters=tuple(opened_base.tensors.values()),
        device=torch_device,
        dtype=OUTPUT_DTYPES[dtype] if dtype else None,
    )


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


def _check_same_layout(base: Checkpoint, expert: str, checkpoint: Checkpoint) -> None:
    """An expert must have the base's architecture, and the same tensors in the same shapes."""
    where = f"expert '{expert}' ({checkpoint.source})"
    if checkpoint.architecture != base.architecture:
        raise GraftbenchError(
            f"{where} is a {checkpoint.architecture}, the base ({base.source}) a {base.architecture}; "
            "experts must be fine-tuned from the base"
        )
    for key in SHAPELESS_SETTINGS:
        ours, theirs = base.config.get(key), checkpoint.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise GraftbenchError(
                f"{where} has {key}={theirs} in config.json, the base {ours}: their weights mean different things"
            )
    if not checkpoint.same_vocabulary(base):
        raise GraftbenchError(
            f"{where} gives other numbers to tokens than the base (tokenizer.json): rows of its embedding do not match"
        )
    missing = [name for name in base.tensors if name not in checkpoint.tensors]
    if missing:
        raise GraftbenchError(
            f"{where} lacks tensor '{missing[0]}' and {len(missing) - 1} more of the base's; export it whole"
        )
    extra = [name for name in checkpoint.tensors if name not in base.tensors]
    if extra:
        raise GraftbenchError(
            f"{where} has tensor '{extra[0]}' ({len(extra)} in all) that the base lacks; is it another base's?"
        )
    for name, info in base.tensors.items():
        found = checkpoint.tensors[name]
        if found.shape != info.shape:
            raise GraftbenchError(
                f"{where}: tensor '{name}' in {found.file.name} has shape {list(found.shape)}, "
                f"the base's {list(info.shape)}; it is fine-tuned from another base, or its vocabulary was changed"
            )


def _curvature(
    method: Method, names: Sequence[str], files: Mapping[str, Path | None], base: Checkpoint
) -> CurvatureSource | None:
    kind = method.curvature_kind()
    if kind is None:
        return None
    if kind not in get_args(CurvatureKind):
        raise unknown_name("curvature that the method asks for", kind, get_args(CurvatureKind))
    found: dict[str, Path] = {}
    option = "fisher" if kind == "fisher" else "second_moments"
    for name in names:
        file = files.get(name)
        if file is None:
            raise GraftbenchError(
                f"this method needs the curvature '{kind}' of expert '{name}', and there is none beside its weights; "
                f"name the file with zoo.{option}.{name}=PATH, or choose a method that needs none (linear, ties, …)"
            )
        found[name] = file
    source = CurvatureSource(kind, found, {name: info.shape for name, info in base.tensors.items()})
    for name, digest in source.base_digests().items():
        if digest != base.weights_digest:
            log.warning(
                "%s says that expert '%s' was trained from another base than %s, or from other files of it",
                found[name],
                name,
                base.source,
            )
    return source
