"""From the tensors of a file of second moments to the parameters that they stand for.

A parameter is there whole, under its own name; or in one of three forms, as two tensors whose names it begins:

    <name>.row    fp32 [rows]              <name>.col     fp32 [columns]            (row/Σ)·col
    <name>.left   fp32 [rows, rank]        <name>.right   fp32 [rank, columns]      left·right
    <name>.codes  uint8, in its shape      <name>.ranges  int32 [blocks, 2]         8 bits in blocks; see `blocks`

One file may hold some parameters in one form and some in another, and has no need to say so elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, WEIGHT_DTYPES, TensorInfo
from harness.checkpoints.safetensors_file import SafetensorsFile
from harness.curvature.blocks import CODES, RANGES, blocks_of
from harness.curvature.compression import COLUMN, ROW, Factors
from harness.curvature.low_rank import LEFT, RIGHT
from harness.curvature.stored import Coded, Factored, Form, Stored, Whole, require_moments
from harness.errors import GraftbenchError

PARTS: dict[Form, tuple[str, str]] = {"sums": (ROW, COLUMN), "rank": (LEFT, RIGHT), "blocks": (CODES, RANGES)}
"""How the names of a form's two tensors end."""

_WORDS = {
    ROW: "row sums",
    COLUMN: "column sums",
    LEFT: "left factors",
    RIGHT: "right factors",
    CODES: "codes",
    RANGES: "block ranges",
}

_AS = {"sums": "sums", "rank": "factors", "blocks": "codes"}


@dataclass(frozen=True)
class Parameters:
    """What a file covers, by the parameter's name."""

    infos: dict[str, TensorInfo] = field(default_factory=dict)
    """Shape as the model has it, and the data type that reading gives."""
    stored: dict[str, Stored] = field(default_factory=dict)
    unreadable: dict[str, torch.dtype] = field(default_factory=dict)
    """Tensors whose data type (integers, fp8) cannot hold second moments."""


def parameters_in(files: Mapping[str, SafetensorsFile]) -> Parameters:
    """The parameters that stored tensors stand for.

    Args:
        files: the file of each tensor.

    Raises:
        GraftbenchError: tensors contradict one another, or one of a pair is missing.
    """
    found = Parameters()
    for key, file in files.items():
        form, name = _form_and_name(key)
        if form is None:
            dtype = file.tensors[key].dtype
            if dtype not in WEIGHT_DTYPES:
                found.unreadable[name] = dtype
            else:
                _add(found, name, file.tensors[key].shape, Whole(file, key))
        elif key.endswith(PARTS[form][0]):
            _add_pair(found, name, form, files)
        elif name + PARTS[form][0] not in files:
            has, lacks = _WORDS[PARTS[form][1]], _WORDS[PARTS[form][0]]
            raise GraftbenchError(f"{file.path}: has {has} of '{name}' but no {lacks}")
    return found


def _form_and_name(key: str) -> tuple[Form | None, str]:
    for form, suffixes in PARTS.items():
        for suffix in suffixes:
            if key.endswith(suffix):
                return form, key.removesuffix(suffix)
    return None, key


def _add(found: Parameters, name: str, shape: tuple[int, ...], stored: Stored) -> None:
    if name in found.stored:
        ways = sorted(_AS[one.form] if one.form else "whole" for one in (found.stored[name], stored))
        both = "both whole and as " + ways[0] if "whole" in ways else f"both as {ways[0]} and as {ways[1]}"
        raise GraftbenchError(f"{stored.path}: has '{name}' {both}; remove one of them")
    found.stored[name] = stored
    found.infos[name] = TensorInfo(name, shape, stored.dtype, stored.path)


def _add_pair(found: Parameters, name: str, form: Form, files: Mapping[str, SafetensorsFile]) -> None:
    first, second = (name + suffix for suffix in PARTS[form])
    path = files[first].path
    if second not in files:
        raise GraftbenchError(f"{path}: has {_WORDS[PARTS[form][0]]} of '{name}' but no {_WORDS[PARTS[form][1]]}")
    one, two = files[first].tensors[first], files[second].tensors[second]
    if form == "blocks":
        if (one.dtype, two.dtype) != (torch.uint8, torch.int32) or two.shape != (blocks_of(prod(one.shape)), 2):
            raise GraftbenchError(
                f"{path}: codes and block ranges of '{name}' are {_described(one.dtype, one.shape)} and "
                f"{_described(two.dtype, two.shape)}, but must be uint8, and int32 with a row of two for every block"
            )
        _add(found, name, one.shape, Coded(files[first], files[second], name))
        return
    for part in (one, two):
        if part.dtype not in WEIGHT_DTYPES:
            found.unreadable[name] = part.dtype
            return
    if form == "sums" and (len(one.shape) != 1 or len(two.shape) != 1):
        raise GraftbenchError(
            f"{path}: row and column sums of '{name}' have shapes {list(one.shape)} and {list(two.shape)}, "
            "but sums of a matrix have one dimension each"
        )
    if form == "rank" and (len(one.shape) != 2 or len(two.shape) != 2 or one.shape[1] != two.shape[0]):
        raise GraftbenchError(
            f"{path}: left and right factors of '{name}' have shapes {list(one.shape)} and {list(two.shape)}, "
            "but must be [rows, rank] and [rank, columns]"
        )

    def read() -> Factors:
        left, right = (_read(files[key], key) for key in (first, second))
        return Factors.of_sums(left, right) if form == "sums" else Factors(left, right)

    _add(found, name, (one.shape[0], two.shape[-1]), Factored(path, form, read))


def _read(file: SafetensorsFile, key: str) -> torch.Tensor:
    stored = file.tensors[key]
    scratch = torch.empty(prod(stored.shape) * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
    values = require_moments(file.read(key, 0, prod(stored.shape), scratch), file.path, key)
    return values.to(torch.float32).view(stored.shape)


def _described(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
